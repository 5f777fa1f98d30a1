"""The gateway's memory for bodies: who waits for room, in which order, and who never does."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from polyolo.errors import OverloadedError
from polyolo.gateway.inbound import Pace
from polyolo.gateway.limits import Memory


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_bodies_wait_for_room_in_the_order_of_asking():
    """A small one does not overtake a large one of its tenant, or that would never come in."""
    memory = Memory(100, 1000)
    await memory.reserve("a", 80)
    order: list[int] = []

    async def take(size: int) -> None:
        await memory.reserve("a", size)
        order.append(size)

    tasks = [asyncio.create_task(take(size)) for size in (90, 10, 5)]
    await settle()
    assert order == []
    memory.shrink("a", 80)
    await settle()
    assert order == [90, 10]
    memory.shrink("a", 90)
    await settle()
    assert order == [90, 10, 5]
    await asyncio.gather(*tasks)


async def test_who_holds_less_than_its_share_never_waits():
    """When four tenants have taken everything, a fifth gets its fifth all the same."""
    memory = Memory(100, 400)
    for tenant in "abcd":
        await memory.reserve(tenant, 100)
    await asyncio.wait_for(memory.reserve("e", 80), 1)
    over = asyncio.create_task(memory.reserve("e", 1))
    await settle()
    assert not over.done()
    memory.shrink("a", 100)
    await asyncio.wait_for(over, 1)


async def test_what_cannot_wait_is_refused():
    """A body whose length nobody knows is cut where it no longer fits."""
    memory = Memory(100, 1000)
    memory.grow("a", 60)
    with pytest.raises(OverloadedError):
        memory.grow("a", 50)
    memory.grow("b", 50)
    assert (memory.held("a"), memory.held("b")) == (60, 50)


async def test_who_stops_waiting_holds_up_nobody():
    """Whoever is next comes in; in the end nothing is held."""
    memory = Memory(100, 250)
    chance = random.Random(5)

    async def visit(tenant: str) -> None:
        size = chance.randrange(1, 100)
        await memory.reserve(tenant, size)
        try:
            await settle()
        finally:
            memory.shrink(tenant, size)

    tasks = [asyncio.create_task(visit(chance.choice("abc"))) for _ in range(300)]
    for task in chance.sample(tasks, 100):
        await asyncio.sleep(0)
        task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (memory._held, memory._sum, memory._waiting) == ({}, 0, {})


async def test_bodies_that_are_dropped_are_read_at_a_pace():
    """All together at most so many bytes a second, however many connections send."""
    started = time.monotonic()
    pace = Pace(1_000_000)
    await asyncio.gather(*(pace.spend(10_000) for _ in range(20)))
    assert time.monotonic() - started >= 0.19
