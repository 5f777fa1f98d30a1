"""What to do next about one runtime: a pure function of desired, observed and remembered.

Called again and again (level-triggered), it never relies on having seen a change happen. Times
are seconds of one monotonic clock, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from polyolo.types import Phase, RuntimeStatus

HEALTH_S = 5.0
"""Between two looks at a runtime that is well; with the driver's own patience a hung runtime is
found within 10 s."""
STABLE_S = 60.0
"""A runtime that was ready for so long has made good for its earlier failures."""
PUSH_AGAIN_S = 5.0
"""A spec that is not in force after this time is applied again."""
_FIRST_BACKOFF_S = 0.25
_LAST_BACKOFF_S = 30.0
_SOONEST_S = 0.02
"""Between two looks at a runtime that is starting: what a look may add to a start."""
_STOPPING_S = 0.25
"""Between two looks at a runtime that is draining; its end is reported by the driver at once."""
_WITHDRAWN_S = 0.5
"""A copy that is to go is out of the gateways' sight for so long before it is ended: what a
gateway has picked it for a moment before is on its way by then, and gateways of another control
plane have heard."""
_UNTOLD_S = 3.0
"""For so long it waits for gateways to say that they know."""


class Wanted(StrEnum):
    """What should become of a runtime."""

    RUNNING = "running"  # with as many copies as Desired says, be it none
    STOPPED = "stopped"
    GONE = "gone"  # with everything that is known of the tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be."""

    tenant: str
    wanted: Wanted
    generation: int = 0
    replicas: int = 1
    """Copies that there should be; 0: asleep."""
    max_replicas: int = 0
    """Most copies that the place may make of them by itself, by load; up to `replicas`: none
    besides those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What has to be remembered between two looks; losing it costs a back-off, nothing else."""

    failures: int = 0
    """Starts that went wrong since the last stable time."""
    reason: str = ""
    """Of the last failure."""
    restart_at: float | None = None
    """When the next start is due; None when none is waiting."""
    ready_since: float | None = None
    applied_at: float | None = None
    applied_generation: int = 0
    applied_replicas: int = 0
    withdrawn_at: float | None = None
    """Since when gateways are told of fewer copies than there are."""


class Verb(StrEnum):
    """What the reconciler is to do."""

    NOTHING = "nothing"
    APPLY = "apply"  # with so many copies as are desired
    REMOVE = "remove"
    FORGET = "forget"  # delete the rows: nothing is left to be ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One step, what to tell of the runtime, and when to look again."""

    verb: Verb
    status: RuntimeStatus
    memory: Memory
    again_in: float | None
    """Seconds; None: when something changes."""


def decide(
    desired: Desired,
    observed: RuntimeStatus | None,
    memory: Memory,
    now: float,
    *,
    told: bool = True,
) -> Decision:
    """Return the next step for one runtime.

    observed: None when there is no trace of it. told: whether every gateway knows the newest
    status.
    """
    if desired.wanted is not Wanted.RUNNING:
        return _end(desired, observed)
    if observed is not None and _too_many(desired, observed):
        return _shrink(desired, observed, memory, now, told=told)
    memory = replace(memory, withdrawn_at=None)
    if desired.replicas == 0:
        return _asleep(desired, observed)
    if observed is None or observed.phase in (Phase.ABSENT, Phase.ASLEEP, Phase.STOPPING):
        # Nothing runs, or nothing that answers. After a failure that is no reason to hurry.
        return _start_when_due(desired, _starting(desired, memory, None), memory, now)
    match observed.phase:
        case Phase.FAILED:
            if memory.restart_at is None:
                memory = failed(memory, observed.reason, now)
            return _start_when_due(desired, _starting(desired, memory, None), memory, now)
        case Phase.READY if observed.reason:  # one of several is lost
            if memory.restart_at is None:
                memory = failed(memory, observed.reason, now)
            return _start_when_due(desired, observed, memory, now)
        case Phase.READY:
            since = now if memory.ready_since is None else memory.ready_since
            memory = replace(memory, ready_since=since, restart_at=None)
            status = observed
        case _:
            status = _starting(desired, memory, observed)
    return _keep(desired, observed, status, memory, now)


def _too_many(desired: Desired, observed: RuntimeStatus) -> bool:
    running = observed.phase in (Phase.READY, Phase.STARTING, Phase.FAILED)
    return running and (desired.replicas == 0 or len(observed.endpoints) > _most(desired))


def _most(desired: Desired) -> int:
    return max(desired.replicas, desired.max_replicas) if desired.replicas else 0


def _shrink(
    desired: Desired, observed: RuntimeStatus, memory: Memory, now: float, *, told: bool
) -> Decision:
    """Take copies out of the gateways' sight, and end them once no gateway sends them anything."""
    kept = observed.endpoints[: _most(desired)]
    status = replace(observed, endpoints=kept) if kept else _sleeping(desired)
    memory = replace(
        memory, withdrawn_at=now if memory.withdrawn_at is None else memory.withdrawn_at
    )
    assert memory.withdrawn_at is not None
    waited = now - memory.withdrawn_at
    if observed.endpoints and (waited < _WITHDRAWN_S or (not told and waited < _UNTOLD_S)):
        return Decision(verb=Verb.NOTHING, status=status, memory=memory, again_in=_WITHDRAWN_S)
    return Decision(
        verb=Verb.APPLY,
        status=status,
        memory=_applied(desired, memory, now),
        again_in=_STOPPING_S,
    )


def _asleep(desired: Desired, observed: RuntimeStatus | None) -> Decision:
    over = observed is None or observed.phase is Phase.ASLEEP
    return Decision(
        verb=Verb.NOTHING if over else Verb.APPLY,
        status=_sleeping(desired),
        memory=Memory(),
        again_in=None if over else _STOPPING_S,
    )


def _sleeping(desired: Desired) -> RuntimeStatus:
    return RuntimeStatus(
        tenant=desired.tenant, phase=Phase.ASLEEP, reason="the next request wakes it"
    )


def failed(memory: Memory, reason: str, now: float) -> Memory:
    """Return the memory after one more failure: the first is restarted at once, later ones wait.

    The delay doubles from 0.25 s up to 30 s, and is forgotten after 60 s of being ready.
    """
    stable = memory.ready_since is not None and now - memory.ready_since >= STABLE_S
    failures = 0 if stable else memory.failures
    doublings = min(failures - 1, 10)  # far beyond the longest delay, and no overflow
    delay = 0.0 if failures == 0 else min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2**doublings)
    return replace(
        memory, failures=failures + 1, reason=reason, restart_at=now + delay, ready_since=None
    )


def _end(desired: Desired, observed: RuntimeStatus | None) -> Decision:
    if observed is not None:
        status = RuntimeStatus(tenant=desired.tenant, phase=Phase.STOPPING, reason="draining")
        return Decision(verb=Verb.REMOVE, status=status, memory=Memory(), again_in=_STOPPING_S)
    gone = desired.wanted is Wanted.GONE
    return Decision(
        verb=Verb.FORGET if gone else Verb.NOTHING,
        status=RuntimeStatus(
            tenant=desired.tenant,
            phase=Phase.ABSENT,
            reason="deleted" if gone else "the tenant is suspended",
        ),
        memory=Memory(),
        again_in=None,
    )


def _start_when_due(
    desired: Desired, status: RuntimeStatus, memory: Memory, now: float
) -> Decision:
    changed = desired.generation > memory.applied_generation  # may be the cure: try at once
    waiting = 0.0 if memory.restart_at is None or changed else memory.restart_at - now
    if waiting > 0:
        return Decision(verb=Verb.NOTHING, status=status, memory=memory, again_in=waiting)
    memory = replace(_applied(desired, memory, now), restart_at=None, ready_since=None)
    return Decision(verb=Verb.APPLY, status=status, memory=memory, again_in=_SOONEST_S)


def _keep(
    desired: Desired,
    observed: RuntimeStatus,
    status: RuntimeStatus,
    memory: Memory,
    now: float,
) -> Decision:
    """Go on with a runtime that is up, or on its way."""
    whole = len(observed.endpoints) >= desired.replicas or observed.phase is not Phase.READY
    in_force = observed.observed_generation >= desired.generation and whole
    waited = now - memory.applied_at if memory.applied_at is not None else PUSH_AGAIN_S
    same = memory.applied_generation >= desired.generation and (
        memory.applied_replicas == desired.replicas
    )
    if not in_force and not (same and waited < PUSH_AGAIN_S):
        memory = _applied(desired, memory, now)
        return Decision(verb=Verb.APPLY, status=status, memory=memory, again_in=_SOONEST_S)
    # Looks grow apart with the time already waited, so none is late by more than a tenth.
    soon = min(max(_SOONEST_S, waited / 10), HEALTH_S)
    well = in_force and observed.phase is Phase.READY
    return Decision(
        verb=Verb.NOTHING, status=status, memory=memory, again_in=HEALTH_S if well else soon
    )


def _applied(desired: Desired, memory: Memory, now: float) -> Memory:
    return replace(
        memory,
        applied_at=now,
        applied_generation=desired.generation,
        applied_replicas=desired.replicas,
    )


def _starting(desired: Desired, memory: Memory, observed: RuntimeStatus | None) -> RuntimeStatus:
    """Tell of a runtime that is not ready: FAILED after a failure, until it answers again.

    Requests are held for a runtime that is starting, and answered 503 for one that crashed.
    """
    base = observed or RuntimeStatus(tenant=desired.tenant, phase=Phase.STARTING)
    if memory.failures == 0:
        return replace(base, phase=Phase.STARTING)
    return replace(base, phase=Phase.FAILED, reason=f"{memory.reason}; it is started again")
