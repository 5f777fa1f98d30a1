"""Measure an exported model, through ONNX Runtime, on boards it never saw.

    python evaluate.py ../src/polyolo/models/pcb-2.onnx

Average precision is the area under the whole precision-recall curve after making precision
monotonic (all-point interpolation, as PASCAL VOC has it since 2010: Everingham et al., 2015,
doi:10.1007/s11263-014-0733-5). A detection is right when its IoU with an unclaimed true box of its
class is at least 0.5.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from boards import draw_board, letterbox
from defects import NAMES
from layout import INPUT

FIRST = 9_000_000  # first seed of the boards for measuring; training uses seeds 0 and up
STRIDES = (8, 16, 32)
LEAST = 0.001  # confidence from which detections count towards average precision
OVERLAP = 0.65  # IoU above which the weaker of two boxes of one class is dropped
SURE = 0.3  # confidence at which precision and recall are read


def grid() -> np.ndarray:
    """Return each anchor's column, row and stride, float32 [3549, 3]."""
    rows = [(x, y, s) for s in STRIDES for y in range(INPUT // s) for x in range(INPUT // s)]
    return np.array(rows, np.float32)


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of one box [4] with boxes [N, 4], xyxy."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inner / (area + (box[2:] - box[:2]).prod() - inner)


def detect(
    session: onnxruntime.InferenceSession, image: np.ndarray, confidence: float, overlap: float
) -> np.ndarray:
    """Return an image's detections, float32 [N, 6]: xyxy in its pixels, confidence, class."""
    canvas, scale = letterbox(image)
    rows = session.run(None, {"images": canvas.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    anchors, kinds = grid(), rows[:, 5:].argmax(1)
    scores = rows[:, 4] * rows[:, 5:].max(1)
    likely = scores >= confidence
    rows, anchors, kinds, scores = rows[likely], anchors[likely], kinds[likely], scores[likely]
    centre = (rows[:, :2] + anchors[:, :2]) * anchors[:, 2:]
    size = np.exp(rows[:, 2:4]) * anchors[:, 2:]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1) / scale
    sized = np.concatenate([boxes[:, :2], size / scale], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sized, scores, kinds.astype(np.int32), confidence, overlap)
    kept = np.asarray(kept, np.int64).reshape(-1)
    return np.column_stack([boxes, scores, kinds])[kept].astype(np.float32)


def match(found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return which detections of one class, best first, claim a true box at IoU 0.5; bool [N]."""
    right, free = np.zeros(len(found), bool), np.ones(len(boxes), bool)
    for i, row in enumerate(found):
        overlaps = iou(row[:4], boxes) * free if len(boxes) else np.zeros(1)
        if overlaps.max() >= 0.5:
            right[i], free[overlaps.argmax()] = True, False
    return right


def average_precision(scores: np.ndarray, right: np.ndarray, total: int) -> float:
    """Return the area under the precision-recall curve of one class with ``total`` true boxes."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) / total * precision))


def ratio(part: float, whole: float) -> float:
    """Return a fraction to four digits, 0 where there is nothing to take it of."""
    return round(float(part) / max(float(whole), 1.0), 4)


def evaluate(path: Path, first: int, count: int) -> dict:
    """Return AP50, and precision and recall at confidence ``SURE``, by class and overall."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores, rights = ([[] for _ in NAMES] for _ in range(2))
    totals = np.zeros(len(NAMES), int)
    for seed in range(first, first + count):
        image, boxes, kinds = draw_board(seed)
        found = detect(session, image, LEAST, OVERLAP)
        found = found[np.argsort(-found[:, 4], kind="stable")]
        for kind in range(len(NAMES)):
            mine = found[found[:, 5] == kind]
            scores[kind].append(mine[:, 4])
            rights[kind].append(match(mine, boxes[kinds == kind]))
            totals[kind] += (kinds == kind).sum()
    score = [np.concatenate(part) for part in scores]
    right = [np.concatenate(part) for part in rights]
    classes = {
        name: {
            "boxes": int(n),
            "ap50": round(average_precision(s, r, n), 4),
            "precision": ratio(r[s >= SURE].sum(), (s >= SURE).sum()),
            "recall": ratio(r[s >= SURE].sum(), n),
        }
        for name, s, r, n in zip(NAMES, score, right, totals, strict=True)
    }
    s, r, n = np.concatenate(score), np.concatenate(right), totals.sum()
    return {
        "boards": count,
        "first_seed": first,
        "map50": round(float(np.mean([row["ap50"] for row in classes.values()])), 4),
        "precision": ratio(r[s >= SURE].sum(), (s >= SURE).sum()),
        "recall": ratio(r[s >= SURE].sum(), n),
        "recall_at_half": ratio(r[s >= 0.5].sum(), n),
        "classes": classes,
    }


def main() -> None:
    """Read the command line, measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--first", type=int, default=FIRST, help="first seed to draw")
    parser.add_argument("--boards", type=int, default=500)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.model, args.first, args.boards), indent=2))


if __name__ == "__main__":
    main()
