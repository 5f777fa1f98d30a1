"""The comparison that lets faster arithmetic in: what it counts, and what it forgives."""

from __future__ import annotations

import pytest

from polyolo.rollouts import ClassCounts
from polyolo.serving.quality import LEAST_BOXES, MOST_DRIFT, Seen, compare, differences

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


def counts(*found: ClassCounts) -> dict[str, tuple[int, int, int]]:
    return {one.name: (one.both, one.missing, one.extra) for one in found}


def test_differences_are_counted_by_the_names_of_classes():
    """Versions may number their classes otherwise; the same name is the same class."""
    one = seen((0, 0.9, 0), (100, 0.8, 1), (200, 0.7, 1))
    two = seen((0, 0.9, 1), (100, 0.8, 0), (300, 0.6, 2))
    found = counts(*differences(one, two, (("cat", "dog"), ("dog", "cat", "cow")), THRESHOLD))
    assert found == {"cat": (1, 0, 0), "dog": (1, 1, 0), "cow": (0, 0, 1)}


def test_what_is_near_the_threshold_is_no_difference_unless_it_is_known():
    """A box that only one has counts when it is clearly above; a known one counts always."""
    near, clear = THRESHOLD + MOST_DRIFT / 2, THRESHOLD + 2 * MOST_DRIFT
    names = (("cat",), ("cat",))
    for confidence, extra in ((near, 0), (clear, 1)):
        found = differences(seen(), seen((0, confidence, 0)), names, THRESHOLD)
        assert counts(*found).get("cat", (0, 0, 0)) == (0, 0, extra)
    for threshold in (0.25, 0.97, 1.0):
        found = differences(seen((0, 1.0, 0)), seen(), names, threshold)
        assert counts(*found) == {"cat": (0, 1, 0)}


def test_the_largest_overlaps_are_matched_first_and_each_box_once():
    """Two boxes on one: the better overlap is the same object, the other one is extra."""
    found = differences(
        seen((0, 0.9, 0)), seen((3, 0.9, 0), (1, 0.8, 0)), (("cat",), ("cat",)), THRESHOLD
    )
    assert counts(*found) == {"cat": (1, 0, 1)}
    nothing = differences(seen(), seen(), ((), ()), THRESHOLD)
    assert nothing == []


def test_a_thousand_boxes_take_no_second():
    """As many as an answer may have, against as many."""
    many = seen(*((3.0 * n, 0.9, 0) for n in range(1000)))
    (found,) = differences(many, many, (("cat",), ("cat",)), THRESHOLD)
    assert found.both == 1000
