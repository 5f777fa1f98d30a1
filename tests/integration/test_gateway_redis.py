"""Rates counted in a real Redis: one count for all gateways, and what happens when it goes away."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyolo.errors import InvalidValueError
from polyolo.gateway.rates import DETECTIONS, Rates
from polyolo.types import Plan
from tests.integration.gateway_parts import platform, route
from tests.integration.redis_server import redis

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server on this machine"
)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="polyolo-") as home:
        yield Path(home)


@pytest.fixture
async def pair(home: Path):
    """Give the rates of two gateways that share a Redis."""
    both = [Rates(f"unix://{home}/redis.sock") for _ in range(2)]
    yield both
    for rates in both:
        await rates.close()


async def let_in(both: list[Rates], plan: Plan, number: int) -> int:
    """Ask so often at once, at each gateway in turn; return how many were let in."""
    count = 0
    for turn in range(number):
        grant = await both[turn % 2].take("t", plan, DETECTIONS)
        assert grant is not None
        count += not grant.limited
    return count


async def test_two_gateways_count_together(home: Path, pair: list[Rates]):
    """One burst for both, and no share of it lost; a gateway that starts gets no new one."""
    plan = Plan(name="p", requests_per_second=0.01, burst=9)
    with redis(home):
        assert await let_in(pair, plan, 30) == 9
        late = Rates(f"unix://{home}/redis.sock")
        assert await let_in([late, late], plan, 5) == 0
        await late.close()


async def test_another_rate_is_in_force_at_once(home: Path, pair: list[Rates]):
    """A count far into the future, from a slow rate or a clock set back, does not stay."""
    with redis(home):
        assert await let_in(pair, Plan(name="p", requests_per_second=0.001, burst=5), 9) == 5
        fast = Plan(name="p", requests_per_second=100, burst=5)
        async with asyncio.timeout(5):
            while not await let_in(pair, fast, 1):
                await asyncio.sleep(0.02)


async def test_without_redis_the_shares_take_over(home: Path, pair: list[Rates], caplog):
    """No request fails; what was used up stays so, and is told to Redis when it is back."""
    for rates in pair:
        rates.share(2)
    plan = Plan(name="p", requests_per_second=0.01, burst=10)
    with redis(home):
        assert await let_in(pair, plan, 6) == 6
    assert await let_in(pair, plan, 30) == 4  # 2 of 5 left at each
    assert [record.msg for record in caplog.records].count(
        "Redis is away: each gateway grants its share of the rates"
    ) == 2
    other = Plan(name="q", requests_per_second=0.02, burst=6)
    count = 0
    for turn in range(20):
        grant = await pair[turn % 2].take("other", other, DETECTIONS)
        assert grant is not None
        count += not grant.limited
    assert count == 6
    for rates in pair:
        rates._away_until = 0.0
    with redis(home):  # it has forgotten everything
        found = [await rates.take("other", other, DETECTIONS) for rates in pair]
        assert [grant.limited for grant in found if grant] == [False, True]


async def test_a_redis_that_hangs_costs_no_request(home: Path, pair: list[Rates]):
    """It is given a moment once a second, and the shares take over."""
    plan = Plan(name="p", requests_per_second=1000)
    with redis(home) as server:
        await let_in(pair, plan, 2)
        server.send_signal(19)  # SIGSTOP
        started = time.monotonic()
        assert await let_in(pair, plan, 20) == 20
        assert time.monotonic() - started < 2.0
        server.send_signal(18)


async def test_a_gateway_with_redis(home: Path):
    """The setting reaches the door: what is used up elsewhere is used up here."""
    url = f"unix://{home}/redis.sock"
    elsewhere = Rates(url)
    with redis(home):
        async with platform(redis=url) as made:
            plan = {"requests_per_second": 0.01, "burst": 3}
            made.publish(route("a", made.socket("a"), **plan))
            await made.revision()
            assert (await made.detect("a")).status_code == 200
            for _ in range(2):
                await elsewhere.take("t_a", Plan(name="p", **plan), DETECTIONS)
            refused = await made.detect("a")
            assert refused.status_code == 429
            assert refused.headers["ratelimit"].startswith('"detections";r=0;')
        await elsewhere.close()


async def test_a_redis_that_comes_and_goes_grants_no_more(home: Path, pair: list[Rates]):
    """Through many losses, each shorter than it takes to fill the burst again."""
    for rates in pair:
        rates.share(2)
    plan = Plan(name="p", requests_per_second=20, burst=10)
    started = time.monotonic()
    count = 0
    with redis(home):
        for turn in range(30):
            for rates in pair:
                rates._away_until = time.monotonic() + 60 if turn % 2 else 0.0
            count += await let_in(pair, plan, 20)
            await asyncio.sleep(0.02)
        allowed = 10 + 20 * (time.monotonic() - started)
    assert count <= allowed + 2
    assert count >= 0.6 * allowed


def test_a_url_that_is_none_is_a_sentence():
    """At start, and without the password that it may hold."""
    with pytest.raises(InvalidValueError, match="redis://") as refused:
        Rates("http://:secret@host")
    assert "secret" not in refused.value.detail
