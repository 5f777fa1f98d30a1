"""Gives the processor to tenants that have used little of it before those that have used much.

A kernel shares it evenly between groups at each moment: a tenant that asks for a little is slowed
down by one that takes all it can get. Here each tenant saves up processor time, at half of the
rate of its share, and who has savings goes first. Those who go first can take no more than half of
the machine between them for long, so the others always have the other half. Of those others, who
takes more than it earns yields at once to all who do not.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from polyolo.sandbox.cgroups import Group
from polyolo.sandbox.confinement import BACKGROUND

AHEAD = 16.0
"""Weight of who goes first: against one neighbour, 94 % of a core that both want."""
_SAVED_S = 0.25
"""Seconds of processor time that are saved at most, and owed at most: 15 detections of a small
model, or a single one of a large one."""
_PART = 0.5
"""Of its share, what a tenant saves: who uses less goes first."""
_BEGINS_S = 0.5
"""Seconds for which one yields that begins what takes time: by then it shows what it uses."""
_IDLE = 0.01
"""Who uses less than this part of a core has no share: it is there for the others."""


@dataclass(slots=True)
class _Account:
    """Of one tenant."""

    used_s: float
    """When last looked at, by its present groups."""
    saved_s: float = _SAVED_S
    yields_until: float = -math.inf


class Precedence:
    """The savings of all tenants. For one thread at a time."""

    def __init__(self, cpus: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody. cpus: what all share."""
        self._cpus = cpus
        self._clock = clock
        self._looked = clock()
        self._accounts: dict[str, _Account] = {}
        self._weights: dict[Group, tuple[float, bool]] = {}

    def look(self, groups: Collection[tuple[str | None, Group]]) -> None:
        """Look at what each group has used since the last look, and weigh them by it.

        groups: of all runtimes, each with its tenant, None for one that is nobody's yet. One
        whose use nobody counts keeps the weight that it has. Raises OSError.
        """
        now = self._clock()
        elapsed, self._looked = now - self._looked, now
        present: defaultdict[str, list[Group]] = defaultdict(list)
        used: defaultdict[str, float] = defaultdict(float)
        weights: dict[Group, tuple[float, bool]] = {}
        for tenant, group in groups:
            if tenant is None:
                weights[group] = BACKGROUND, True
            elif (seconds := group.used_s()) is not None:
                present[tenant].append(group)
                used[tenant] += seconds
        self._accounts = {
            tenant: self._accounts.get(tenant) or _Account(seconds)
            for tenant, seconds in used.items()
        }
        # A copy that has ended has taken its use with it: nothing, then, not less than nothing.
        uses = {
            tenant: max(0.0, used[tenant] - one.used_s) for tenant, one in self._accounts.items()
        }
        sharing = sum(use > _IDLE * elapsed for use in uses.values())
        income = _PART * self._cpus * elapsed / max(1, sharing)
        for tenant, account in self._accounts.items():
            account.used_s = used[tenant]
            saved = account.saved_s + income - uses[tenant]
            account.saved_s = min(max(saved, -_SAVED_S), _SAVED_S)
            mine = present[tenant]
            if account.saved_s > 0:
                weight, yields = AHEAD, False
            else:  # one that got next to nothing does not yield: it would get nothing for long
                weight, yields = 1.0, uses[tenant] > income or now < account.yields_until
            weights |= dict.fromkeys(mine, (weight / len(mine), yields))
        for group, (weight, yields) in weights.items():
            if self._weights.get(group) != (weight, yields):
                group.weigh(weight, yields=yields)
        self._weights = weights

    def spend(self, tenant: str) -> None:
        """Have the tenant's savings be gone: it begins something that is not to hurt others."""
        if (account := self._accounts.get(tenant)) is not None:
            account.saved_s = -_SAVED_S
            account.yields_until = self._clock() + _BEGINS_S
