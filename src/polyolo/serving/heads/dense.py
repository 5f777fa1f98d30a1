"""Decodes heads that give one box for each place of a grid: YOLOv5 to v9, 11 to 13, YOLOX, NAS.

All of them overlap, so NMS follows. One class for each box, its best. Candidates are filtered
before anything else is computed: of thousands of places a picture fills some dozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyolo.serving.heads.head import Candidates, Decode

GRIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""Strides of the usual three levels, of P6 models, and of P2 models for small objects."""


def places(size: tuple[int, int], strides: Sequence[int]) -> int:
    """Return how many places the grids of these strides have on an input of (height, width)."""
    height, width = size
    return sum((height // stride) * (width // stride) for stride in strides)


def yolov5(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode [B,N,5+nc]: centre x, y, width, height in pixels, objectness, class scores.

    YOLOv5 and v7 (three anchors a place), and v6, whose objectness is always 1.
    """
    rows = outputs[0][index]
    keep, score, class_id = _with_objectness(rows, confidence, classes)
    return Candidates(xyxy=corners(rows[keep, :4]), score=score, class_id=class_id)


def yolox(size: tuple[int, int], strides: Sequence[int]) -> Decode:
    """Return the decoder of [B,N,5+nc] on the raw grid, for an input of (height, width).

    Centre = (output + place) * stride, size = exp(output) * stride (Ge et al. 2021, Megvii's
    `demo_postprocess`). N is the places of the strides' grids, row by row, stride by stride.
    """
    height, width = size
    grid = np.concatenate(
        [
            np.stack(
                np.meshgrid(np.arange(width // stride), np.arange(height // stride)), axis=-1
            ).reshape(-1, 2)
            for stride in strides
        ]
    ).astype(np.float32)
    scale = np.concatenate(
        [np.full((places(size, (stride,)), 1), stride, np.float32) for stride in strides]
    )

    def decode(
        outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
    ) -> Candidates:
        rows = outputs[0][index]
        keep, score, class_id = _with_objectness(rows, confidence, classes)
        box, stride = rows[keep, :4], scale[keep]
        with np.errstate(over="ignore"):  # an infinite box is reported by who asked for it
            box[:, :2] = (box[:, :2] + grid[keep]) * stride
            box[:, 2:] = np.exp(box[:, 2:]) * stride
        return Candidates(xyxy=corners(box), score=score, class_id=class_id)

    return decode


def yolov8(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode [B,4+nc,N]: centre x, y, width, height in pixels, class scores; no objectness."""
    columns = outputs[0][index]
    scores = columns[4 : 4 + classes]
    best = scores.max(axis=0)
    keep = np.flatnonzero(best >= confidence)
    return Candidates(
        xyxy=corners(columns[:4, keep].T),
        score=best[keep],
        class_id=scores[:, keep].argmax(axis=0),
    )


def yolo_nas(
    outputs: Sequence[NDArray[Any]], index: int, confidence: float, classes: int
) -> Candidates:
    """Decode boxes [B,N,4] as corners in pixels, and class scores [B,N,nc]."""
    scores = outputs[1][index][:, :classes]
    keep, score, class_id = best_class(scores, confidence)
    return Candidates(xyxy=outputs[0][index][keep], score=score, class_id=class_id)


def best_class(
    scores: NDArray[np.float32], confidence: float
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
    """Return rows of [N,nc] whose best class reaches the confidence; its score; its id."""
    best = scores.max(axis=1)
    keep = np.flatnonzero(best >= confidence)
    return keep, best[keep], scores[keep].argmax(axis=1)


def corners(centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [N,4] of corners (x1, y1, x2, y2) for [N,4] of centre, width and height."""
    half = centred[:, 2:] / 2
    return np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)


def _with_objectness(
    rows: NDArray[np.float32], confidence: float, classes: int
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
    """Do as `best_class` for [N,5+nc], where a score is objectness times class score."""
    # Class scores are at most 1, so that objectness alone rules nearly every row out.
    likely = np.flatnonzero(rows[:, 4] >= confidence)
    likely_rows = rows[likely]
    scores = likely_rows[:, 5 : 5 + classes] * likely_rows[:, 4:5]
    keep, score, class_id = best_class(scores, confidence)
    return likely[keep], score, class_id
