"""Decides whether faster arithmetic finds what float32 finds: boxes against boxes, by numbers.

Rounding moves every confidence a little, so boxes near the threshold come and go with any
arithmetic, and count neither as lost nor as invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

LEAST_BOXES = 20
"""Boxes that float32 must have found for the comparison to say anything: with 20 and none lost,
more than one in seven being lost in truth is less likely than 1 to 20."""
LEAST_AGREEMENT = 0.99
"""Part of all clear boxes, either's, that both have. With fewer than 100 boxes: all of them."""
LEAST_IOU = 0.95
"""Mean overlap of the boxes that both have: within COCO's strictest threshold. bfloat16 gave
0.98 and 0.99 for the models measured."""
MOST_DRIFT = 0.05
"""Greatest change of a confidence: half the step in which people set thresholds. bfloat16 moved
the bundled board model's by 0.009 and YOLOX-Nano's by 0.051, which is refused."""
_SAME = 0.5  # overlap from which two boxes of a class are the same object, as in COCO's AP50


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The boxes of one picture, most confident first."""

    xyxy: list[tuple[float, float, float, float]]
    confidence: list[float]
    class_id: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one arithmetic's boxes compare with float32's."""

    pictures: int
    boxes: int
    """What float32 found."""
    agreement: float
    """Part of all clear boxes that both found."""
    iou: float
    """Mean overlap of those that both found."""
    drift: float
    """Greatest change of a confidence."""

    @property
    def objection(self) -> str:
        """Why the arithmetic must not be used; empty when it may."""
        if self.boxes < LEAST_BOXES:
            return (
                f"too little to compare: {self.boxes} boxes in {self.pictures} golden pictures, "
                f"at least {LEAST_BOXES} are needed"
            )
        if self.agreement < LEAST_AGREEMENT:
            return f"agreement below {LEAST_AGREEMENT}"
        if self.iou < LEAST_IOU:
            return f"overlap below {LEAST_IOU}"
        if self.drift > MOST_DRIFT:
            return f"confidences drift by more than {MOST_DRIFT}"
        return ""

    def __str__(self) -> str:
        return (
            f"{self.boxes} boxes in {self.pictures} pictures: agreement {self.agreement:.3f}, "
            f"mean IoU {self.iou:.3f}, confidence drift {self.drift:.3f} at most"
        )


def compare(exact: Sequence[Seen], other: Sequence[Seen], threshold: float) -> Comparison:
    """Compare what two arithmetics saw in the same pictures.

    threshold: least confidence of the boxes in both.
    """
    both = clear = 0
    overlaps: list[float] = []
    drift = 0.0
    for one, two in zip(exact, other, strict=True):
        pairs = _pairs(one, two)
        overlaps += [overlap for _, _, overlap in pairs]
        both += len(pairs)
        for i, j, _ in pairs:
            drift = max(drift, abs(one.confidence[i] - two.confidence[j]))
        for seen, taken in ((one, {i for i, _, _ in pairs}), (two, {j for _, j, _ in pairs})):
            clear += sum(
                index not in taken and confidence > threshold + MOST_DRIFT
                for index, confidence in enumerate(seen.confidence)
            )
    return Comparison(
        pictures=len(exact),
        boxes=sum(len(one.confidence) for one in exact),
        agreement=both / (both + clear) if both + clear else 1.0,
        iou=sum(overlaps) / len(overlaps) if overlaps else 0.0,
        drift=drift,
    )


def _pairs(one: Seen, two: Seen) -> list[tuple[int, int, float]]:
    """Match boxes of a class, the largest overlaps first, each box once."""
    overlaps = sorted(
        (
            (_iou(box, other), i, j)
            for i, box in enumerate(one.xyxy)
            for j, other in enumerate(two.xyxy)
            if one.class_id[i] == two.class_id[j]
        ),
        reverse=True,
    )
    left, right = set(range(len(one.xyxy))), set(range(len(two.xyxy)))
    pairs = []
    for overlap, i, j in overlaps:
        if overlap >= _SAME and i in left and j in right:
            left.remove(i)
            right.remove(j)
            pairs.append((i, j, overlap))
    return pairs


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)
