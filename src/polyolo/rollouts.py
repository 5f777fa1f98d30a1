"""A version on trial: what is asked of it and what it has shown, for runtimes and for the gate.

The same rules as in `polyolo.types`, which gives these nouns on: they import nothing, a field is
added with a default and is never renamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A version on trial beside the current one."""

    version: int
    share: float
    """0 to 1, of the requests that name no version, chosen by their id."""
    shadow: bool = False
    """It sees a copy of those requests and its answers are only counted; else it answers them."""
    since: int = 0
    """Generation of the spec that began it; with another one its counts begin anew."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must lie between 0 and 1, not {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """Boxes of one class, as a candidate and its reference have them."""

    name: str
    both: int = 0
    missing: int = 0
    """Only the reference has them."""
    extra: int = 0
    """Only the candidate has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a candidate's boxes compare with a reference's. Made by `compared`."""

    pictures: int = 0
    agreement: float = 1.0
    """Boxes that both have, as a part of all boxes, 0 to 1; 1 where there are none at all."""
    classes: tuple[ClassCounts, ...] = ()
    """By name; only classes of which there was a box."""

    @property
    def boxes(self) -> int:
        """Return how many boxes there are, those that both have counted once."""
        return sum(one.both + one.missing + one.extra for one in self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """What a version on trial has shown since the rollout began in this runtime."""

    seen: int = 0
    """Requests that named no version."""
    requests: int = 0
    """Of these, those that it was given: to answer, or as a copy."""
    failed: int = 0
    """Of these, those that it failed on and the current version did not."""
    skipped: int = 0
    """Copies that it was not given after all, since it was busy with earlier ones."""
    milliseconds: float = 0.0
    """Mean time for a picture: decoding, inference and postprocessing."""
    current_milliseconds: float = 0.0
    """The same of the current version, meanwhile."""
    comparison: Comparison | None = None
    """Of its boxes with the current version's; only where it sees copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRule:
    """When a rollout ends by itself: promoted if it is as good as this, else aborted."""

    after: int
    """Requests that it is given before it is judged; more errors than allowed end it at once."""
    errors: float = 0.01
    """Most of them, 0 to 1, that it may fail on."""
    agreement: float | None = None
    """Least agreement with the current version, 0 to 1; only a shadow shows any."""

    def __post_init__(self) -> None:
        if not 1 <= self.after <= 1_000_000_000:
            raise ValueError(f"after must be 1 to 1000000000 requests, not {self.after}")
        if not 0.0 <= self.errors <= 1.0:
            raise ValueError(f"errors must lie between 0 and 1, not {self.errors}")
        if self.agreement is not None and not 0.0 <= self.agreement <= 1.0:
            raise ValueError(f"agreement must lie between 0 and 1, not {self.agreement}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """A rollout as its tenant sees it: what was asked for, how it stands, how it ended."""

    version: int
    share: float
    shadow: bool = False
    rule: RolloutRule | None = None
    state: str = "running"
    """running, promoted or aborted."""
    reason: str = ""
    """Why it ended, for a person to read."""
    began_at: float = 0.0
    began_by: str = ""
    ended_at: float | None = None
    status: RolloutStatus = RolloutStatus()
    """What it has shown, over all starts of the runtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What a version showed on pictures before it was to be put in use."""

    version: int
    reference: int | None = None
    """The version in use, which it is compared with; None: there is none."""
    passed: bool
    note: str = ""
    """Why it may not be put in use, or what to know of the comparison."""
    pictures: str = "golden"
    """golden: the tenant's own; samples: the platform's."""
    tolerance: float | None = None
    """Least agreement that was asked for; None: none was."""
    comparison: Comparison = Comparison()
    """Of its boxes with the expected ones; where nobody knows those, with the reference's."""
    reference_comparison: Comparison | None = None
    """The same of the reference."""
    milliseconds: float = 0.0
    """Median time for a picture."""
    reference_milliseconds: float = 0.0
    memory_bytes: int = 0
    reference_memory_bytes: int = 0


def added(one: RolloutStatus, other: RolloutStatus) -> RolloutStatus:
    """Return what two runs of a rollout have shown together."""
    comparison = one.comparison or other.comparison
    if one.comparison is not None and other.comparison is not None:
        comparison = compared(
            one.comparison.pictures + other.comparison.pictures,
            [*one.comparison.classes, *other.comparison.classes],
        )
    apart = one.seen - one.requests, other.seen - other.requests
    return RolloutStatus(
        seen=one.seen + other.seen,
        requests=one.requests + other.requests,
        failed=one.failed + other.failed,
        skipped=one.skipped + other.skipped,
        milliseconds=_mean((one.milliseconds, one.requests), (other.milliseconds, other.requests)),
        current_milliseconds=_mean(
            (one.current_milliseconds, apart[0] or one.seen),
            (other.current_milliseconds, apart[1] or other.seen),
        ),
        comparison=comparison,
    )


def _mean(*parts: tuple[float, int]) -> float:
    known = [(value, weight) for value, weight in parts if value and weight]
    weights = sum(weight for _, weight in known)
    return round(sum(value * weight for value, weight in known) / weights, 2) if weights else 0.0


def compared(pictures: int, counts: Iterable[ClassCounts]) -> Comparison:
    """Return the comparison with these counts, several of a class added up."""
    sums: dict[str, list[int]] = {}
    for one in counts:
        total = sums.setdefault(one.name, [0, 0, 0])
        for index, count in enumerate((one.both, one.missing, one.extra)):
            total[index] += count
    classes = tuple(
        ClassCounts(name=name, both=both, missing=missing, extra=extra)
        for name, (both, missing, extra) in sorted(sums.items())
        if both or missing or extra
    )
    both = sum(one.both for one in classes)
    boxes = sum(one.both + one.missing + one.extra for one in classes)
    return Comparison(
        pictures=pictures, agreement=round(both / boxes, 4) if boxes else 1.0, classes=classes
    )
