"""Turns: who is let in next, what a tenant's requests cost the others, what is refused."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from polyolo.errors import OverloadedError
from polyolo.gateway.turns import Turn, Turns


class Told:
    """Remembers who waits and who was refused."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()

    def waits(self, name: str, change: int) -> None:
        self.waiting[name] += change

    def shed(self, name: str, reason: str) -> None:
        self.refused[name, reason] += 1


class World:
    """A machine with so many slots on a clock that stands still until it is told to go on."""

    def __init__(self, slots: int = 2) -> None:
        self.now = 100.0
        self.told = Told()
        self.turns = Turns(slots, self.told, lease_s=1e6, clock=lambda: self.now)
        self.inside: list[tuple[float, str, Turn]] = []
        self.order: list[str] = []
        self.served: Counter[str] = Counter()
        self.work: Counter[str] = Counter()

    async def ask(self, tenant: str, seconds: float, weight: float = 1.0, within: float = 1e9):
        """Ask for a turn, and be inside for so many seconds once it has come."""
        turn = self.turns.turn(tenant, tenant, weight, self.now + within)
        await turn.__aenter__()
        self.order.append(tenant)
        self.inside.append((self.now + seconds, tenant, turn))
        self.work[tenant] += seconds

    def asks(self, tenant: str, seconds: float, **more: float) -> asyncio.Task[None]:
        return asyncio.create_task(self.ask(tenant, seconds, **more))

    async def on(self) -> bool:
        """Go on to the end of whoever is done first; False when nobody is inside."""
        await settle()
        if not self.inside:
            return False
        first = min(self.inside, key=lambda one: one[0])
        self.inside.remove(first)
        self.now = first[0]
        self.served[first[1]] += 1
        first[2].end()
        await settle()
        return True

    async def until(self, moment: float, again: Callable[[str], None]) -> None:
        """Go on until that moment, with `again` told of each tenant that was served."""
        while self.now < moment:
            served = self.served.copy()
            assert await self.on()
            for tenant in self.served - served:
                again(tenant)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def crowd(world: World, costs: dict[str, float], weights: dict[str, float]) -> None:
    """Have tenants ask without end, each with six requests at a time, for 60 seconds."""
    tasks = []

    def again(tenant: str) -> None:
        tasks.append(world.asks(tenant, costs[tenant], weight=weights.get(tenant, 1.0)))

    for tenant in costs:
        for _ in range(6):
            again(tenant)
    await world.until(world.now + 60, again)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_without_slots_nobody_waits():
    """0 lets everybody in, and counts nothing."""
    world = World(slots=0)
    for _ in range(1000):
        await world.ask("a", 1)
    assert world.told.waiting == {}


async def test_no_more_are_inside_than_there_are_slots():
    """The rest waits, and comes in as others end, in the order of one tenant's asking."""
    world = World(slots=2)
    tasks = [world.asks("a", 1) for _ in range(5)]
    await settle()
    assert len(world.inside) == 2
    assert world.told.waiting["a"] == 3
    while await world.on():
        assert len(world.inside) <= 2
    assert world.served["a"] == 5
    assert world.told.waiting["a"] == 0
    await asyncio.gather(*tasks)


async def test_cheap_and_expensive_requests_cost_the_same_share():
    """Of two that ask without end each gets half of the machine, whatever a request costs."""
    world = World()
    await crowd(world, {"many cheap": 0.01, "few expensive": 0.4}, {})
    whole = sum(world.work.values())
    for tenant in world.work:
        assert world.work[tenant] / whole == pytest.approx(0.5, abs=0.02)


async def test_weights_are_shares():
    """A tenant of weight 3 gets three times what one of weight 1 gets."""
    world = World()
    await crowd(world, {"a": 0.03, "b": 0.05, "c": 0.02}, {"a": 3.0})
    whole = sum(world.work.values())
    assert world.work["a"] / whole == pytest.approx(0.6, abs=0.02)
    assert world.work["b"] / whole == pytest.approx(0.2, abs=0.02)


async def test_ten_equal_tenants_get_the_same():
    """Jain's index of what they got is 1 to the percent, however their costs differ."""
    world = World(slots=4)
    chance = random.Random(7)
    await crowd(world, {f"t{n}": chance.uniform(0.005, 0.2) for n in range(10)}, {})
    got = list(world.work.values())
    assert sum(got) ** 2 / (10 * sum(x * x for x in got)) > 0.99


async def test_who_is_below_its_share_does_not_wait():
    """Beside one that takes all it gets, another has its half of the slots at once; no more."""
    world = World(slots=4)
    tasks = [world.asks("greedy", 1) for _ in range(20)]
    await settle()
    for _ in range(2):
        await asyncio.wait_for(world.ask("b", 1), 1)
    third = world.asks("b", 1)
    await settle()
    assert not third.done()
    assert Counter(name for _, name, _ in world.inside) == {"greedy": 4, "b": 2}
    for _ in range(3):
        await world.on()
    assert len(world.inside) == 4  # over again: what was taken at once is given back
    while await world.on():
        pass
    await asyncio.gather(*tasks, third)
    assert (world.turns._active, world.turns._weights) == (0, 0.0)


async def test_who_asks_for_little_is_next():
    """Behind three tenants with long queues a tenant that asks now and then waits for one slot
    to come free, and for nobody's queue."""
    world = World(slots=2)
    tasks = [world.asks(f"t{n}", 0.1) for n in range(3) for _ in range(50)]
    await settle()
    waited = []
    for _ in range(10):
        for _ in range(7):
            await world.on()
        asked, before = world.now, len(world.order)
        tasks.append(world.asks("now and then", 0.02))
        while "now and then" not in world.order[before:]:
            await world.on()
        waited.append(world.now - asked)
    assert max(waited) <= 0.1 + 1e-9
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_idle_time_is_not_saved_up():
    """A tenant that comes after an hour alternates with the others; it does not take all."""
    world = World(slots=1)
    await world.ask("late", 0.1)
    await world.on()
    tasks = []

    def again(tenant: str) -> None:
        tasks.append(world.asks(tenant, 0.1))

    for _ in range(4):
        again("busy")
    await world.until(world.now + 3600, again)
    world.order.clear()
    for _ in range(20):
        again("late")
    for _ in range(20):
        await world.on()
        again("busy")
    assert Counter(world.order)["busy"] >= 9
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_runtime_that_hangs_holds_up_nobody_else():
    """After its lease a request keeps nobody out, though it goes on; its time is counted."""
    told = Told()
    turns = Turns(2, told, lease_s=0.01)
    hung = [turns.turn("hung", "hung", 1.0, 1e18) for _ in range(2)]
    for turn in hung:
        await turn.__aenter__()
    async with asyncio.timeout(5), turns.turn("a", "a", 1.0, 1e18):
        assert told.waiting["a"] == 0
    for turn in hung:
        turn.end()
    async with turns.turn("a", "a", 1.0, 1e18), turns.turn("a", "a", 1.0, 1e18):
        third = asyncio.create_task(turns.turn("a", "a", 1.0, 1e18).__aenter__())
        await settle()
        assert not third.done()  # the slots are two again, no more
    await third


async def test_what_takes_long_keeps_its_own_tenant_out():
    """After their lease slow requests keep out those of their own tenant still, until one is done:
    a runtime that is slow is not made slower by more and more of them."""
    told = Told()
    turns = Turns(2, told, lease_s=0.01)
    slow = [turns.turn("slow", "slow", 1.0, 1e18) for _ in range(4)]
    for turn in slow[:2]:
        await turn.__aenter__()
    more = [asyncio.create_task(turn.__aenter__()) for turn in slow[2:]]
    async with asyncio.timeout(5):  # both leases are over once both slots are another's
        async with turns.turn("a", "a", 1.0, 1e18), turns.turn("a", "a", 1.0, 1e18):
            await settle()
            assert told.waiting["slow"] == 2
        assert not more[0].done()
        slow[0].end()
        await more[0]
        await settle()
        assert not more[1].done()
        slow[1].end()
        await more[1]


async def test_who_stops_waiting_leaves_no_hole():
    """Requests that end while they wait, or in the moment that their turn comes, cost no slot."""
    world = World(slots=1)
    chance = random.Random(3)
    tasks = [world.asks(f"t{n % 3}", 0.01) for n in range(300)]
    await settle()
    for task in chance.sample(tasks, 150):
        task.cancel()
        if chance.random() < 0.5:
            await world.on()
    while await world.on():
        pass
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(one, asyncio.CancelledError) for one in ended)
    assert world.served.total() == 300 - cancelled
    assert set(world.told.waiting.values()) == {0}
    await asyncio.wait_for(world.ask("t0", 1), 1)


async def test_hopeless_requests_are_refused_at_once():
    """Who would be let in after its deadline is told so, and how long what waits will take."""
    world = World(slots=1)
    tasks = [world.asks("a", 0.5) for _ in range(20)]
    for _ in range(10):
        await world.on()  # by now it is known what a request takes
    with pytest.raises(OverloadedError) as refused:
        await world.ask("a", 0.5, within=2.0)
    assert refused.value.retry_after == pytest.approx(4.5, rel=0.2)
    assert world.told.refused["a", "hopeless"] == 1
    tasks.append(world.asks("b", 0.5, within=2.0))  # another tenant's queue is not its own
    while await world.on():
        pass
    await asyncio.gather(*tasks)


async def test_the_oldest_is_shed_first():
    """It has waited longest and is the least likely to be still wanted; the newest come in."""
    world = World(slots=1)
    await world.ask("a", 1)
    tasks = [world.asks("a", 1) for _ in range(3)]
    await settle()
    assert world.turns.shed("a")
    await settle()
    assert [task.done() for task in tasks] == [True, False, False]
    with pytest.raises(OverloadedError, match="come again"):
        await tasks[0]
    assert world.told.refused["a", "full"] == 1
    assert world.told.waiting["a"] == 2
    assert not world.turns.shed("b")
    while await world.on():
        pass
    assert world.served["a"] == 3
    assert not world.turns.shed("a")


async def test_tenants_that_are_gone_are_forgotten():
    """Unless something of them is still inside, or waits."""
    world = World(slots=1)
    await world.ask("gone", 1)
    assert await world.on()
    await world.ask("a", 1)
    waiting = world.asks("b", 1)
    await settle()
    world.turns.keep(set())
    assert set(world.turns._flows) == {"a", "b"}
    await world.on()
    await waiting
    assert await world.on()
    world.turns.keep(set())
    assert world.turns._flows == {}
