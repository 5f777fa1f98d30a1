"""Compares boxes with boxes: faster arithmetic with float32, a new version with the one in use.

Rounding moves every confidence a little, so boxes near the threshold come and go with any
arithmetic, and count neither as lost nor as invented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyolo.rollouts import ClassCounts

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
_CERTAIN = 0.999  # below the confidence of boxes that are known, whatever the threshold is
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


def differences(
    reference: Seen, candidate: Seen, names: tuple[Sequence[str], Sequence[str]], threshold: float
) -> list[ClassCounts]:
    """Count by class what two versions saw in one picture; classes are the same by name.

    names: of the reference's classes and of the candidate's, by id. threshold: least confidence of
    the boxes in both; what only one has counts when it is clearly above. Known boxes have 1.
    """
    both: Counter[str] = Counter()
    alone: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    ids = {name: id_ for id_, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
    sides = [
        (seen, [ids[known[id_]] for id_ in seen.class_id])
        for seen, known in zip((reference, candidate), names, strict=True)
    ]
    pairs = _matched(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    for i, _, _ in pairs:
        both[names[0][reference.class_id[i]]] += 1
    for side, (seen, _) in enumerate(sides):
        taken = {pair[side] for pair in pairs}
        for index, confidence in enumerate(seen.confidence):
            if index not in taken and confidence > min(threshold + MOST_DRIFT, _CERTAIN):
                alone[side][names[side][seen.class_id[index]]] += 1
    return [
        ClassCounts(name=name, both=both[name], missing=alone[0][name], extra=alone[1][name])
        for name in {*both, *alone[0], *alone[1]}
    ]


def _pairs(one: Seen, two: Seen) -> list[tuple[int, int, float]]:
    return _matched(one, two, one.class_id, two.class_id)


def _matched(
    one: Seen, two: Seen, classes: Sequence[int], others: Sequence[int]
) -> list[tuple[int, int, float]]:
    """Match boxes of a class, the largest overlaps first, each box once.

    classes, others: of each box of `one` and of `two`.
    """
    if not one.confidence or not two.confidence:
        return []
    overlaps = _overlaps(np.asarray(one.xyxy, np.float64), np.asarray(two.xyxy, np.float64))
    overlaps[np.asarray(classes)[:, None] != np.asarray(others)[None]] = 0
    found = np.argwhere(overlaps >= _SAME).tolist()
    left, right = set(range(len(one.xyxy))), set(range(len(two.xyxy)))
    pairs = []
    for i, j in sorted(found, key=lambda pair: -overlaps[pair[0], pair[1]]):
        if i in left and j in right:
            left.remove(i)
            right.remove(j)
            pairs.append((i, j, float(overlaps[i, j])))
    return pairs


def _overlaps(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union [N,M] of boxes [N,4] and [M,4]; 0 where there is none."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, two)]
    together = areas[0][:, None] + areas[1][None] - shared
    ratios: NDArray[np.float64] = np.divide(
        shared, together, out=np.zeros_like(shared), where=together > 0
    )
    return ratios
