"""Whether a rollout is over: a pure function of what was asked for and what was seen."""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.rollouts import RolloutRecord, RolloutRule
from polyolo.types import ModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a rollout ends. reason: for a person to read."""

    promote: bool
    reason: str


def judged(record: RolloutRecord, seen: ModelStatus) -> Verdict | None:
    """Return how a running rollout ends; None while it goes on.

    record: with what it has shown so far. seen: how its version fares now. One that cannot load,
    or whose process ended, is aborted whatever its rule says.
    """
    if seen.state == "failed":
        return Verdict(promote=False, reason=seen.reason)
    rule, shown = record.rule, record.status
    if rule is None:
        return None
    given = shown.requests - shown.skipped
    allowed = rule.errors * max(given, rule.after)
    if shown.failed > allowed:
        return Verdict(
            promote=False,
            reason=f"it failed on {shown.failed} of {given} requests, and {rule.errors:g} of them "
            "are allowed",
        )
    pictures = shown.comparison.pictures if shown.comparison is not None else 0
    enough = pictures + shown.failed if record.shadow else given
    if enough < rule.after:
        return None
    if rule.agreement is not None and shown.comparison is not None:
        agreement = shown.comparison.agreement
        if agreement < rule.agreement:
            return Verdict(
                promote=False,
                reason=f"agreement {agreement:.3f} after {pictures} pictures is below "
                f"{rule.agreement:g}",
            )
        return Verdict(promote=True, reason=f"agreement {agreement:.3f} after {pictures} pictures")
    return Verdict(promote=True, reason=f"{shown.failed} errors in {given} requests")


def worded(rule: RolloutRule) -> str:
    """Return a rule in a few words."""
    said = f"judged after {rule.after} requests, errors at most {rule.errors:g}"
    if rule.agreement is not None:
        said += f", agreement at least {rule.agreement:g}"
    return said
