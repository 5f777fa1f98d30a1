"""One tenant's runtime is several copies: what they are together, and which of them are to stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from polyolo.types import OUTDATED, Phase, RuntimeStatus

_NAME = re.compile(r"([A-Za-z0-9_-]{1,64})?(?:~([1-9][0-9]{0,8}))?")

_FIRST = (Phase.STARTING, Phase.FAILED, Phase.STOPPING)
"""What a runtime is where none of its copies answers: the first that one of them is."""


def name_of(tenant: str | None, number: int) -> str:
    """Return the name of a copy's directory: `t_a`, `t_a~2`, …; for nobody's copies `~1`, ….

    Raises ValueError for a tenant's id that is not fit to be a directory's name.
    """
    if tenant is None:
        return f"~{number}"
    name = tenant if number == 1 else f"{tenant}~{number}"
    if read_name(name) != (tenant, number):
        raise ValueError(f"not a tenant's id: {tenant!r}")
    return name


def read_name(name: str) -> tuple[str | None, int] | None:
    """Return the tenant (None: nobody's yet) and the number that a name means; None: neither."""
    found = _NAME.fullmatch(name)
    if found is None or not name or (found[2] == "1" and found[1] is not None):
        return None
    return found[1], int(found[2] or 1)


def together(tenant: str, copies: Sequence[RuntimeStatus]) -> RuntimeStatus:
    """Return what the copies of a runtime are together. copies: at least one, the oldest first.

    READY if one answers: with the generation that all of those have in force, and the reason why
    another one failed. Those that others are to replace come last in `endpoints`.
    """
    ready = [copy for copy in copies if copy.phase is Phase.READY]
    newest = max(ready, key=lambda copy: copy.observed_generation, default=None)
    if newest is not None:
        ready.sort(key=lambda copy: _is_old(copy) or copy.release != newest.release)
    failed = next((copy.reason for copy in copies if copy.phase is Phase.FAILED), "")
    if ready:
        last = min(ready, key=lambda copy: copy.observed_generation)
        endpoints = tuple(endpoint for copy in ready for endpoint in copy.endpoints)
        return replace(last, tenant=tenant, endpoints=endpoints, reason=failed)
    for phase in _FIRST:
        for copy in copies:
            if copy.phase is phase:
                return replace(copy, tenant=tenant)
    return replace(copies[0], tenant=tenant)


def to_stay(
    same: Mapping[int, RuntimeStatus], seen: Mapping[int, RuntimeStatus], wanted: int
) -> tuple[set[int], set[int]]:
    """Return the numbers of the copies that are to stay, and of those that go on until others
    answer in their place.

    same: of the release that is wanted. seen: all that there are. Of those that run, the answering
    ones come first.
    """
    running = {
        n: c for n, c in same.items() if c.phase in (Phase.READY, Phase.STARTING) and not _is_old(c)
    }
    best = sorted(running, key=lambda number: (running[number].phase is not Phase.READY, number))
    stay = best[:wanted]
    answering = sum(running[number].phase is Phase.READY for number in stay)
    old = sorted(n for n in seen.keys() - running if seen[n].phase is Phase.READY)
    return set(stay), set(old[: max(0, wanted - answering)])


def _is_old(copy: RuntimeStatus) -> bool:
    return copy.observed_generation == OUTDATED
