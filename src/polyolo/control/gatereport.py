"""Whether a version is good enough, and how to say so: pure functions of what was compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from polyolo.comparejob import Result, Task
from polyolo.resources import ModelSettings
from polyolo.rollouts import Comparison, GateReport

TOLERANCE = 0.9
"""Least agreement on golden pictures of the tenant's own where its settings do not say: rounding
and a retraining on the same data stay above it, a class that was lost does not."""
_MOST_SAID = 12  # classes in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared."""

    tenant: str
    number: int
    reference: int | None
    """The version in use; None when it is the one in question."""
    settings: ModelSettings
    golden: bool
    """Whether there are pictures of the tenant's own."""
    elsewhere: bool
    """Whether a version's file is where only its owner's runtime can read it."""
    taken_out: str
    """Why the version was taken out of use; empty if it was not."""
    task: Task
    digests: tuple[str, ...]
    """Of what is read from the tenant's store, in the order of the task."""

    def key(self) -> bytes:
        """Return what is the same where the result must be."""
        what = self.tenant, self.digests, self.task
        return hashlib.sha256(msgspec.json.encode(what)).digest()


def judged(question: Question, result: Result) -> GateReport:
    """Return what a comparison says of a version.

    It is good enough with an agreement of the tolerance, or that of the version in use if that
    is lower. On the platform's pictures, which need not show what the tenant's do, agreement
    counts only where the tenant's settings ask for it.
    """
    tolerance = question.settings.tolerance
    if tolerance is None and question.golden:
        tolerance = TOLERANCE
    candidate, reference = result.candidate, result.reference
    notes: list[str] = []
    passed = True
    comparison = candidate.comparison if candidate is not None else Comparison()
    if question.elsewhere:
        notes.append("it was not compared: its file is in storage of your own")
    elif result.refused or candidate is None:
        passed = False
        notes.append(result.refused or "it could not be compared")
    else:
        least = tolerance or 0.0
        if reference is not None:
            least = min(least, reference.comparison.agreement)
        passed = comparison.agreement >= least
        notes += _notes(question, result, comparison, least)
    return GateReport(
        version=question.number,
        reference=question.reference,
        passed=passed,
        note="; ".join(notes),
        pictures="golden" if question.golden else "samples",
        tolerance=tolerance,
        comparison=comparison,
        reference_comparison=None if reference is None else reference.comparison,
        milliseconds=0.0 if candidate is None else candidate.milliseconds,
        reference_milliseconds=0.0 if reference is None else reference.milliseconds,
        memory_bytes=0 if candidate is None else candidate.memory_bytes,
        reference_memory_bytes=0 if reference is None else reference.memory_bytes,
    )


def sentence(report: GateReport) -> str:
    """Return a report in a sentence, for the audit log."""
    if not report.comparison.pictures:
        return report.note
    time = _ratio(report.milliseconds, report.reference_milliseconds)
    memory = _ratio(report.memory_bytes, report.reference_memory_bytes)
    return (
        f"agreement {report.comparison.agreement:.3f} on {_pictures(report)}"
        f"{_worst(report.comparison)}, time {time}, memory {memory}"
    )


def _notes(question: Question, result: Result, comparison: Comparison, least: float) -> list[str]:
    notes = []
    if comparison.agreement < least:
        notes.append(
            f"it agrees on {comparison.agreement:.3f} of the boxes, and {least:.3f} is asked for"
            f"{_worst(comparison)}; correct it, or put it in use by force"
        )
    elif not comparison.boxes:
        notes.append("no box is expected or found in these pictures, so nothing was compared")
    if not question.golden:
        notes.append(
            "compared on the platform's sample pictures: put golden pictures of your own beside "
            "the model for a comparison that means something"
        )
    if result.without_reference:
        notes.append(f"without the version in use: {result.without_reference}")
    if result.left_out:
        notes.append(f"there was no time for {result.left_out} of the pictures")
    return notes


def _pictures(report: GateReport) -> str:
    count = report.comparison.pictures
    kind = "golden" if report.pictures == "golden" else "sample"
    return f"{count} {kind} picture{'' if count == 1 else 's'}"


def _worst(comparison: Comparison) -> str:
    said = [
        f"{one.name} {one.missing} missing, {one.extra} extra"
        for one in sorted(comparison.classes, key=lambda one: -one.missing - one.extra)
        if one.missing or one.extra
    ]
    more = f" and {len(said) - _MOST_SAID} more classes" if len(said) > _MOST_SAID else ""
    return f" ({'; '.join(said[:_MOST_SAID])}{more})" if said else ""


def _ratio(value: float, reference: float) -> str:
    return f"x{value / reference:.2f}" if value and reference else "unknown"
