"""Monthly quotas at a gateway: what control told, what was let in since, and the month's turn."""

from __future__ import annotations

import pytest

from polyolo.errors import QuotaUsedUpError
from polyolo.gateway.quotas import Quotas
from polyolo.resources import UsageTaken
from polyolo.types import Phase, Plan, TenantRoute, TenantState, UsageRecord

TURN = 1769904000.0  # 2026-02-01 00:00 UTC
LIMIT = 10


class World:
    """A gateway's quotas on a clock that stands still."""

    def __init__(self) -> None:
        self.now = TURN - 400.0
        self.quotas = Quotas(clock=lambda: self.now)
        self.records = 0

    def let_in(self, number: int, told: TenantRoute) -> int:
        """Try to let requests in; return how many came in."""
        inside = 0
        for _ in range(number):
            try:
                inside += self.quotas.enter(told)
            except QuotaUsedUpError:
                break
        return inside

    def answered(self, images: int) -> UsageRecord:
        """Have one request that is inside answered, with so many pictures."""
        self.quotas.leave("t", images)
        self.records += 1
        return UsageRecord(id=str(self.records), tenant="t", at=self.now, status=200, images=images)


def route(used: int = 0, month: str = "2026-01", limit: int = LIMIT) -> TenantRoute:
    return TenantRoute(
        tenant="t",
        name="acme",
        state=TenantState.ACTIVE,
        plan=Plan(name="free", images_per_month=limit),
        phase=Phase.READY,
        images_used=used,
        month=month,
    )


def test_without_a_quota_nothing_is_counted():
    """Most tenants: no state, no refusal."""
    world = World()
    assert not world.quotas.enter(route(limit=0))
    assert world.quotas._counts == {}


def test_requests_in_flight_count():
    """No more are let in at once than there are pictures left, so none is answered over it."""
    world = World()
    assert world.let_in(100, route(used=4)) == 6
    world.answered(0)  # it failed, and costs no picture
    assert world.let_in(100, route(used=4)) == 1


def test_what_control_has_not_counted_yet_counts():
    """Between two batches the gateway knows what it has served itself."""
    world = World()
    assert world.let_in(4, route()) == 4
    batch = [world.answered(2) for _ in range(4)]
    assert world.let_in(100, route()) == 2
    for _ in range(2):
        world.answered(0)
    world.quotas.confirm(batch[:2], UsageTaken(month="2026-01", images={"t": 5}))
    # 5 by control's count (one of them elsewhere), 4 more not confirmed
    assert world.let_in(100, route()) == 1
    world.answered(0)
    world.quotas.confirm(batch[2:], UsageTaken(month="2026-01", images={"t": 9}))
    assert world.let_in(100, route()) == 1


def test_a_lost_record_is_given_back():
    """What control will never count is not held against the tenant."""
    world = World()
    world.let_in(5, route())
    records = [world.answered(2) for _ in range(5)]
    assert world.let_in(1, route()) == 0
    world.quotas.lose(records[0])
    assert world.let_in(100, route()) == 2


def test_what_other_gateways_served_is_told():
    """A snapshot that says the quota is used up stops a tenant that has been quiet here."""
    world = World()
    assert world.let_in(1, route(used=0)) == 1
    world.answered(1)
    assert world.let_in(1, route(used=LIMIT)) == 0


def test_the_refusal_says_when_there_is_more():
    """The plan, the quota, and the first day of the month after."""
    world = World()
    with pytest.raises(QuotaUsedUpError, match=r"10 pictures of the plan free .* 2026-02-01"):
        world.quotas.enter(route(used=LIMIT))


def test_a_month_begins_at_nothing():
    """At the turn, in UTC, everything is there again; the old month's numbers do not count."""
    world = World()
    assert world.let_in(100, route()) == LIMIT
    late = world.answered(1)
    assert world.let_in(100, route()) == 0
    world.now = TURN
    assert world.let_in(3, route(used=LIMIT)) == 3  # told in January
    world.quotas.confirm([late], UsageTaken(month="2026-01", images={"t": LIMIT}))
    assert world.let_in(100, route(used=LIMIT)) == 7
    for _ in range(20):
        world.answered(0)  # those of January, too, end
    assert world.let_in(100, route(used=2, month="2026-02")) == LIMIT


def test_a_plan_that_grows_lets_in_more():
    """The quota is that of the route, as it is now."""
    world = World()
    assert world.let_in(100, route()) == LIMIT
    assert world.let_in(100, route(limit=LIMIT + 5)) == 5
    world.quotas.keep(set())
    assert world.let_in(100, route()) == LIMIT
