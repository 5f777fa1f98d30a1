"""Decodes graphs that give each object once: YOLOv10, YOLO26, the DETRs, graphs with NMS inside.

No NMS follows. Rows that such graphs pad with have a score of 0, or lie behind their count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyolo.serving.heads.dense import best_class, corners
from polyolo.serving.heads.head import Candidates, Decode


def end_to_end(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode [B,M,6]: corners in pixels, score, class. YOLOv10, YOLO26, Ultralytics' nms=True."""
    del classes  # the graph gives labels, not a column for each class
    rows = outputs[0][index]
    return _labelled(rows[:, :4], rows[:, 4], rows[:, 5], confidence)


def with_nms(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode num_dets [B,1], det_boxes [B,M,4] (corners, pixels), scores [B,M], classes [B,M]."""
    del classes
    counts, boxes, scores, labels = outputs
    count = max(0, int(counts[index].flat[0]))
    return _labelled(boxes[index][:count], scores[index][:count], labels[index][:count], confidence)


def labelled(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode labels [B,Q], boxes [B,Q,4] (corners in the given size), scores [B,Q]: D-FINE."""
    del classes
    labels, boxes, scores = outputs
    return _labelled(boxes[index], scores[index], labels[index], confidence)


def rt_detr(size: tuple[int, int]) -> Decode:
    """Return the decoder of [B,Q,4+nc]: centred boxes as fractions of the input, class scores."""

    def decode(
        outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
    ) -> Candidates:
        rows = outputs[0][index]
        keep, score, class_id = best_class(rows[:, 4 : 4 + classes], confidence)
        xyxy = _in_pixels(rows[keep, :4], size)
        return Candidates(xyxy=xyxy, score=score, class_id=class_id)

    return decode


def queries(size: tuple[int, int]) -> Decode:
    """Return the decoder of boxes [B,Q,4] (centred, fractions) and class logits [B,Q,nc].

    A score is the logit's sigmoid: D-FINE's and RF-DETR's focal loss, no softmax.
    """

    def decode(
        outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
    ) -> Candidates:
        boxes, logits = outputs[0][index], outputs[1][index][:, :classes]
        best = logits.max(axis=1)
        with np.errstate(over="ignore"):  # exp of a large negative logit: a score of 0
            score = 1 / (1 + np.exp(-best))
        keep = np.flatnonzero(score >= confidence)
        xyxy = _in_pixels(boxes[keep], size)
        return Candidates(xyxy=xyxy, score=score[keep], class_id=logits[keep].argmax(axis=1))

    return decode


def _labelled(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[Any],
    confidence: float,
) -> Candidates:
    keep = np.flatnonzero((scores >= confidence) & (scores > 0))  # 0 is what padding has
    class_id = np.rint(labels[keep].clip(-1, _NO_LABEL)).astype(np.int64)
    return Candidates(xyxy=boxes[keep], score=scores[keep], class_id=class_id)


_NO_LABEL = 1_000_000  # beyond any label, within any integer: broken ones end up here


def _in_pixels(fractions: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    height, width = size
    return corners(fractions) * np.array([width, height, width, height], np.float32)
