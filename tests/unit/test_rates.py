"""Rates: no tenant gets more than its plan grants, whoever counts, and what an answer tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from polyolo.gateway.rates import CALLS, DETECTIONS, Grant, Rates
from polyolo.types import Phase, Plan, TenantRoute, TenantState


def plan(rate: float, burst: int = 0) -> Plan:
    return Plan(name="p", requests_per_second=rate, burst=burst)


def route(tenant: str, limits: Plan) -> TenantRoute:
    return TenantRoute(
        tenant=tenant, name=tenant, state=TenantState.ACTIVE, plan=limits, phase=Phase.READY
    )


async def take(rates: Rates, limits: Plan, tenant: str = "t") -> Grant:
    grant = await rates.take(tenant, limits, DETECTIONS)
    assert grant is not None
    return grant


async def granted(rates: list[Rates], limits: Plan, number: int, tenant: str = "t") -> int:
    """Ask so often, at each gateway in turn, at once; return how many were let in."""
    found = [await take(rates[n % len(rates)], limits, tenant) for n in range(number)]
    return sum(not grant.limited for grant in found)


async def offered(rates: list[Rates], limits: Plan, seconds: float) -> tuple[int, float]:
    """Ask ten times as often as is granted; return how many were let in, in how many seconds."""
    started = time.monotonic()
    asked = inside = 0
    while (now := time.monotonic() - started) < seconds:
        while asked < now * limits.requests_per_second * 10:
            inside += await granted([rates[asked % len(rates)]], limits, 1)
            asked += 1
        await asyncio.sleep(0.001)
    return inside, time.monotonic() - started


async def test_a_plan_without_a_rate_is_not_counted():
    """No count, no header."""
    assert await Rates().take("t", plan(0), DETECTIONS) is None


@pytest.mark.parametrize(("rate", "burst", "at_once"), [(1, 0, 1), (2.5, 0, 3), (0.01, 7, 7)])
async def test_a_burst_then_the_rate(rate, burst, at_once):
    """A burst of 0 means one second's worth, at least one; the next one is told when to come."""
    rates = Rates()
    limits = plan(rate, burst)
    assert await granted([rates], limits, at_once) == at_once
    grant = await take(rates, limits)
    assert grant.limited
    assert 0 < grant.retry_s <= 1 / rate


@pytest.mark.parametrize("gateways", [1, 2])
async def test_ten_times_the_rate(gateways):
    """Of ten times the rate a burst and the rate are let in, by all gateways together."""
    rates = [Rates() for _ in range(gateways)]
    for one in rates:
        one.share(gateways)
    limits = plan(100, 20)
    inside, seconds = await offered(rates, limits, 0.6)
    assert inside <= 20 + 100 * seconds + 1
    assert inside >= 20 + 100 * (seconds - 0.05) - gateways


async def test_a_gateway_that_starts_gives_no_burst_to_those_it_knew():
    """Who was there before it started may have had the burst already; who came later has not."""
    now = time.monotonic()
    rates = Rates(clock=lambda: now)
    rates.carry([route("old", plan(0.01, 50)), route("free", plan(0))])
    assert await granted([rates], plan(0.01, 50), 60, "old") == 0
    assert await granted([rates], plan(0.01, 50), 60, "new") == 50
    assert await granted([rates], plan(0.01, 50), 60, "free") == 50  # it had no rate then
    later = Rates()
    later.carry([route("old", plan(0.05, 100))])
    later._carried_at -= 1005.0  # 50 requests are there again, and a quarter of one
    assert await granted([later], plan(0.05, 100), 200, "old") == 50
    assert 14 < (await take(later, plan(0.05, 100), "old")).retry_s <= 15


async def test_shares_follow_the_number_of_gateways():
    """Two gateways have half of the burst each; one that is left has all of it again."""
    rates = Rates()
    rates.share(2)
    assert await granted([rates], plan(0.001, 10), 20) == 5
    rates.share(1)
    assert await granted([rates], plan(0.001, 10), 20) == 0  # its half is used; the rate is slow
    assert await granted([rates], plan(0.001, 10), 20, "other") == 10


async def test_another_rate_is_in_force_at_once():
    """A tenant that had waited for a slow rate does not wait on after it got a fast one."""
    rates = Rates()
    assert await granted([rates], plan(0.001, 5), 9) == 5
    assert (await take(rates, plan(0.001, 5))).retry_s > 500
    assert (await take(rates, plan(200, 5))).retry_s <= 1 / 200
    await until(lambda: take(rates, plan(200, 5)))


async def until(ask: Callable[[], object]) -> None:
    async with asyncio.timeout(2):
        while (await ask()).limited:
            await asyncio.sleep(0.002)


async def test_what_answers_tell():
    """The policy's burst and the seconds it takes to come back, what is left, and until when."""
    rates = Rates()
    headers = (await take(rates, plan(0.5, 4))).headers
    assert headers["ratelimit-policy"] == '"detections";q=4;w=8'
    assert headers["ratelimit"] == '"detections";r=3;t=2'
    calls = await rates.take("t", plan(0.5, 4), CALLS)
    assert calls is not None
    assert calls.headers["ratelimit"] == '"calls";r=3;t=2'  # counted apart
    assert (await take(rates, plan(0.5, 4))).headers["ratelimit"] == '"detections";r=2;t=4'
