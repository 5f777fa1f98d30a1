"""How many copies of a runtime there should be: a pure function of plan, use and clock.

Sleeping is having none. Times are seconds of one monotonic clock, given by the caller; a wall
clock is believed only once, at the first look after a start, so that one that is set to another
time puts nobody to sleep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

IN_FLIGHT = 4.0
"""Requests in flight that one copy is there for. On two cores two are computed and two wait, so
that no core is ever idle; what comes on top only waits."""
MORE_S = 2.0
"""For so long there must be too few copies before there are more: a start takes half a second, and
a burst that is over by then would not have been served by it."""
FEWER_S = 60.0
"""For so long there must be too many copies before there is one less: stopping and starting again
costs more than keeping."""
_SPARE = 0.7
"""One copy less must leave the others below this part of what they are there for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the plan allows, and what was asked for lately."""

    least: int = 0
    """Copies even when nothing is asked for."""
    most: int = 1
    idle_s: float = 900.0
    """Seconds without a request after which it sleeps."""
    used_at: float = 0.0
    """Unix seconds of the last sign of use; 0: never."""
    changes_in: float | None = None
    """Seconds until `least` is another; None: it stays."""
    in_flight: float = 0.0
    """Requests in flight, averaged over the last second, at all gateways together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The copies that there should be, with what has to be remembered to say so again."""

    replicas: int = 0
    used_at: float | None = None
    """`Demand.used_at` as last seen; None before the first look."""
    used: float = 0.0
    """When that was, by the clock of `now`."""
    more_since: float | None = None
    fewer_since: float | None = None


def scaled(demand: Demand, before: Scale, *, now: float, wall: float) -> Scale:
    """Return how many copies there should be now. now: monotonic; wall: unix seconds."""
    if before.used_at is None:
        before = replace(before, used=now - max(0.0, wall - demand.used_at))
    elif demand.used_at != before.used_at:
        before = replace(before, used=now)
    before = replace(before, used_at=demand.used_at)
    if demand.used_at == 0.0 or now - before.used >= demand.idle_s:
        return replace(before, replicas=demand.least, more_since=None, fewer_since=None)
    return _by_load(demand, before, now)


def looks_again(demand: Demand, scale: Scale, *, now: float) -> float | None:
    """Return the seconds until the answer may be another one by itself; None: it will not."""
    sleeps_in = scale.used + demand.idle_s - now if scale.replicas > demand.least else None
    moments = [seconds for seconds in (sleeps_in, demand.changes_in) if seconds is not None]
    return max(0.05, min(moments)) if moments else None


def _by_load(demand: Demand, before: Scale, now: float) -> Scale:
    least = max(1, demand.least)
    most = max(least, demand.most)
    present = min(max(before.replicas, least), most)
    before = replace(before, replicas=present)
    wanted = min(math.ceil(demand.in_flight / IN_FLIGHT), most)
    if wanted > present:
        since = now if before.more_since is None else before.more_since
        if now - since < MORE_S:
            return replace(before, more_since=since, fewer_since=None)
        return replace(before, replicas=wanted, more_since=None, fewer_since=None)
    if present > least and demand.in_flight <= (present - 1) * IN_FLIGHT * _SPARE:
        since = now if before.fewer_since is None else before.fewer_since
        if now - since < FEWER_S:
            return replace(before, more_since=None, fewer_since=since)
        return replace(before, replicas=present - 1, more_since=None, fewer_since=None)
    return replace(before, more_since=None, fewer_since=None)
