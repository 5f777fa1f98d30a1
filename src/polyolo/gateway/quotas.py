"""Monthly quotas: how many pictures each tenant has used, as control counts and as let in since.

Control has the count of all gateways, and tells it with each batch of usage that it takes, once a
second; this gateway adds what it has let in meanwhile. So a tenant is let over its quota by no
more than what is in flight, and what the other gateways let in within that second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from polyolo import months
from polyolo.errors import QuotaUsedUpError
from polyolo.resources import UsageTaken
from polyolo.types import TenantRoute, UsageRecord


@dataclass(slots=True)
class _Count:
    """One tenant's pictures of this month."""

    known: int
    """What control has counted."""
    here: int = 0
    """Used here and not yet confirmed by control."""
    inside: int = 0
    """Requests in flight, each taken for one picture."""


class Quotas:
    """The counts of those tenants whose plan has a quota. On the event loop's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Begin with what snapshots say. clock: unix seconds."""
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self._month = ""
        self._begun = self._turn = 0.0

    def enter(self, route: TenantRoute) -> bool:
        """Count a request in, if its tenant has a quota; return whether it has.

        Raises QuotaUsedUpError that says when there is more.
        """
        limit = route.plan.images_per_month
        if not limit:
            return False
        self._turn_over()
        told = route.images_used if route.month == self._month else 0
        count = self._counts.get(route.tenant)
        if count is None:
            count = self._counts[route.tenant] = _Count(known=told)
        elif told >= limit:  # else it may hold what is `here` too
            count.known = max(count.known, told)
        if count.known + count.here + count.inside >= limit:
            end = datetime.fromtimestamp(self._turn, UTC)
            raise QuotaUsedUpError(
                f"this month's {limit:,} pictures of the plan {route.plan.name} are used up; there "
                f"are more from {end:%Y-%m-%d} 00:00 UTC, or with another plan"
            )
        count.inside += 1
        return True

    def leave(self, tenant: str, images: int) -> None:
        """Count a request out that was counted in. images: what it used."""
        count = self._counts.get(tenant)
        if count is not None:
            count.inside = max(0, count.inside - 1)  # it may have begun last month
            count.here += images

    def confirm(self, batch: Sequence[UsageRecord], taken: UsageTaken) -> None:
        """Take note that control has counted a batch."""
        used: Counter[str] = Counter()
        for record in batch:
            used[record.tenant] += record.images
        self._turn_over()
        for tenant, number in used.items():
            count = self._counts.get(tenant)
            if count is not None:
                count.here = max(0, count.here - number)
                if taken.month == self._month:
                    count.known = taken.images.get(tenant, count.known)

    def lose(self, record: UsageRecord) -> None:
        """Take note that control will never count this record."""
        count = self._counts.get(record.tenant)
        if count is not None:
            count.here = max(0, count.here - record.images)

    def keep(self, tenants: set[str]) -> None:
        """Forget tenants that are gone or have no quota any more."""
        for tenant in self._counts.keys() - tenants:
            del self._counts[tenant]

    def _turn_over(self) -> None:
        now = self._clock()
        if not self._begun <= now < self._turn:
            self._month, self._begun, self._turn = (
                months.label(now),
                months.start(now),
                months.end(now),
            )
            self._counts.clear()
