"""When a rollout is over, and when a version is good enough: tables of what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polyolo.comparejob import Result, Showing, Subject, Task
from polyolo.control.gatereport import Question, judged, sentence
from polyolo.control.verdict import judged as over
from polyolo.resources import ModelSettings
from polyolo.rollouts import (
    ClassCounts,
    Comparison,
    RolloutRecord,
    RolloutRule,
    RolloutStatus,
    added,
    compared,
)
from polyolo.types import ModelStatus

READY = ModelStatus(name="city", version=2, state="ready")
FAILED = replace(READY, state="failed", reason="SIGSEGV")
RULE = RolloutRule(after=100, errors=0.02)
STRICT = replace(RULE, agreement=0.9)


def record(rule: RolloutRule | None = RULE, *, shadow: bool = False, **shown: Any) -> RolloutRecord:
    return RolloutRecord(
        version=2, share=0.2, shadow=shadow, rule=rule, status=RolloutStatus(**shown)
    )


def boxes(both: int, missing: int, pictures: int = 100) -> Comparison:
    return compared(pictures, [ClassCounts(name="cat", both=both, missing=missing)])


@pytest.mark.parametrize(
    ("tried", "seen", "promoted", "said"),
    [
        (record(None, seen=10**6, requests=10**6, failed=10**5), READY, None, ""),
        (record(None), FAILED, False, "SIGSEGV"),
        (record(requests=99), READY, None, ""),
        (record(requests=100), READY, True, "0 errors in 100 requests"),
        (record(requests=100), FAILED, False, "SIGSEGV"),
        (record(requests=100, failed=2), READY, True, "2 errors"),
        (record(requests=100, failed=3), READY, False, "failed on 3 of 100"),
        (record(requests=10, failed=2), READY, None, ""),
        (record(requests=10, failed=3), READY, False, "failed on 3 of 10"),  # before its time
        # A shadow is judged by what it has seen, not by what was meant for it.
        (record(STRICT, shadow=True, requests=200, skipped=101), READY, None, ""),
        (
            record(STRICT, shadow=True, requests=200, skipped=100, comparison=boxes(95, 5)),
            READY,
            True,
            "agreement 0.950 after 100 pictures",
        ),
        (
            record(STRICT, shadow=True, requests=100, comparison=boxes(89, 11)),
            READY,
            False,
            "0.890 after 100 pictures is below 0.9",
        ),
        (record(STRICT, shadow=True, requests=99, comparison=boxes(0, 9, 99)), READY, None, ""),
        (record(RULE, shadow=True, requests=100, comparison=boxes(1, 99)), READY, True, "0 errors"),
    ],
)
def test_a_rollout_is_over(tried: RolloutRecord, seen: ModelStatus, promoted, said: str):
    """By its rule when it was given enough; by a failure at once, rule or none."""
    found = over(tried, seen)
    assert (found and found.promote) == promoted
    if found is not None:
        assert said in found.reason


QUESTION = Question(
    tenant="t_1",
    number=2,
    reference=1,
    settings=ModelSettings(),
    golden=True,
    elsewhere=False,
    taken_out="",
    task=Task(candidate=Subject(size=1), reference=Subject(size=1)),
    digests=("a", "b", "c"),
)


def result(agreement: float, reference: float = 1.0, **more: Any) -> Result:
    def showing(part: float) -> Showing:
        both = round(100 * part)
        return Showing(comparison=boxes(both, 100 - both, 5), milliseconds=10.0, memory_bytes=100)

    return Result(candidate=showing(agreement), reference=showing(reference), **more)


@pytest.mark.parametrize(
    ("question", "shown", "passed", "said"),
    [
        (QUESTION, result(0.9), True, ""),
        (QUESTION, result(0.89), False, "agrees on 0.890 of the boxes, and 0.900 is asked for"),
        # As good as the version in use is good enough, where boxes are known.
        (QUESTION, result(0.5, 0.5), True, ""),
        (QUESTION, result(0.49, 0.5), False, "and 0.500 is asked for"),
        (replace(QUESTION, settings=ModelSettings(tolerance=0.4)), result(0.4), True, ""),
        # The platform's pictures say something, but forbid nothing unless they are asked.
        (replace(QUESTION, golden=False), result(0.0), True, "sample pictures"),
        (
            replace(QUESTION, golden=False, settings=ModelSettings(tolerance=0.5)),
            result(0.49),
            False,
            "0.500 is asked for",
        ),
        (QUESTION, Result(refused="the new version ended its process"), False, "ended its"),
        (QUESTION, Result(), False, "could not be compared"),
        (replace(QUESTION, elsewhere=True), Result(), True, "storage of your own"),
        (QUESTION, result(1.0, left_out=7), True, "no time for 7"),
        (QUESTION, result(1.0, without_reference="it hangs"), True, "version in use: it hangs"),
        (
            QUESTION,
            Result(candidate=Showing(comparison=Comparison(pictures=5))),
            True,
            "nothing was compared",
        ),
    ],
)
def test_a_version_is_good_enough(question: Question, shown: Result, passed: bool, said: str):
    """By tolerance on golden pictures; never one that cannot be opened or ends the comparison."""
    report = judged(question, shown)
    assert report.passed is passed
    assert said in report.note


def test_the_sentence_for_the_audit_log_names_the_worst_classes_first():
    """Figures first, then what is missing and extra by class, a dozen of them."""
    counted = [ClassCounts(name=f"c{n:02}", both=5, missing=n) for n in range(20)]
    shown = Showing(comparison=compared(3, counted), milliseconds=20.0, memory_bytes=300)
    reference = Showing(comparison=compared(3, []), milliseconds=10.0, memory_bytes=200)
    said = sentence(judged(QUESTION, Result(candidate=shown, reference=reference)))
    assert said.startswith("agreement 0.345 on 3 golden pictures (c19 19 missing, 0 extra; c18")
    assert said.endswith("and 7 more classes), time x2.00, memory x1.50")
    assert len(said) < 2000


def test_the_same_question_has_the_same_key_and_another_has_not():
    """Files, pictures and settings count; numbers and the tolerance do not."""
    assert QUESTION.key() == replace(QUESTION, number=9, reference=8).key()
    tolerant = replace(QUESTION, settings=ModelSettings(tolerance=0.1))
    assert QUESTION.key() == tolerant.key()
    for other in (
        replace(QUESTION, digests=("a", "b", "d")),
        replace(QUESTION, tenant="t_2"),
        replace(QUESTION, task=replace(QUESTION.task, candidate=Subject(size=1, engine="auto"))),
    ):
        assert QUESTION.key() != other.key()


def test_two_runs_of_a_rollout_add_up():
    """Counts are summed, means weighted, comparisons joined."""
    one = RolloutStatus(
        seen=100, requests=20, failed=1, milliseconds=10.0, comparison=boxes(9, 1, 20)
    )
    two = RolloutStatus(seen=300, requests=60, milliseconds=20.0, comparison=boxes(1, 9, 60))
    both = added(one, two)
    assert (both.seen, both.requests, both.failed, both.milliseconds) == (400, 80, 1, 17.5)
    assert both.comparison is not None
    assert (both.comparison.pictures, both.comparison.agreement) == (80, 0.5)
    assert added(RolloutStatus(), two) == two
    assert added(two, RolloutStatus()) == two
