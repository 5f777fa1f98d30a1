"""The comparison that lets faster arithmetic in: what it counts, and what it forgives."""

from __future__ import annotations

import pytest

from polyolo.serving.quality import LEAST_BOXES, MOST_DRIFT, Seen, compare

THRESHOLD = 0.25


def seen(*boxes: tuple[float, float, int]) -> Seen:
    """Make boxes of 10 x 10 pixels: (left edge, confidence, class)."""
    return Seen(
        xyxy=[(left, 0.0, left + 10, 10.0) for left, _, _ in boxes],
        confidence=[confidence for _, confidence, _ in boxes],
        class_id=[id_ for _, _, id_ in boxes],
    )


MANY = [(20.0 * n, 0.9, n % 3) for n in range(LEAST_BOXES)]


def objection(other) -> str:
    return compare([seen(*MANY)], [seen(*other)], THRESHOLD).objection


def test_the_same_boxes_are_accepted_in_any_order():
    """The order is that of confidences, which rounding may swap."""
    found = compare([seen(*MANY)], [seen(*reversed(MANY))], THRESHOLD)
    assert found.objection == ""
    assert (found.agreement, found.iou, found.drift) == (1.0, 1.0, 0.0)


def test_too_few_boxes_say_nothing():
    """One box less than needed is refused, however alike; no box at all too."""
    for few in (MANY[1:], []):
        found = compare([seen(*few)], [seen(*few)], THRESHOLD)
        assert "too little to compare" in found.objection
        assert f"{len(few)} boxes" in found.objection


@pytest.mark.parametrize("change", ["lost", "invented", "another class", "elsewhere"])
def test_one_clear_box_of_twenty_is_too_much(change: str):
    """A box that only one of the two has counts against agreement."""
    other = {
        "lost": MANY[1:],
        "invented": [*MANY, (1000.0, 0.9, 0)],
        "another class": [(0.0, 0.9, 7), *MANY[1:]],
        "elsewhere": [(1000.0, 0.9, 0), *MANY[1:]],
    }[change]
    assert "agreement" in objection(other)


def test_boxes_at_the_threshold_come_and_go():
    """Rounding puts them on one side or the other: neither lost nor invented."""
    edge = THRESHOLD + MOST_DRIFT / 2
    assert objection([*MANY, (1000.0, edge, 0)]) == ""
    assert compare([seen(*MANY, (1000.0, edge, 0))], [seen(*MANY)], THRESHOLD).objection == ""
    assert "agreement" in objection([*MANY, (1000.0, THRESHOLD + 2 * MOST_DRIFT, 0)])


def test_moved_boxes_and_drifting_confidences_are_refused():
    """The mean overlap and the greatest drift have limits of their own."""
    assert "overlap" in objection([(left + 1, score, id_) for left, score, id_ in MANY])
    assert "drift" in objection([(left, score - 0.06, id_) for left, score, id_ in MANY])
    assert objection([(left + 0.1, score - 0.04, id_) for left, score, id_ in MANY]) == ""


def test_each_box_is_matched_once():
    """Two boxes on one object are not both that object."""
    double = [*MANY, (0.5, 0.9, 0)]
    assert "agreement" in objection(double)


def test_the_figures_are_said():
    """A person reads them in the model's status."""
    text = str(compare([seen(*MANY)], [seen(*MANY)], THRESHOLD))
    assert text == (
        "20 boxes in 1 pictures: agreement 1.000, mean IoU 1.000, confidence drift 0.000 at most"
    )
