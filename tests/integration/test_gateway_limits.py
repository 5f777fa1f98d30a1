"""Limits at the door: rates, quotas, turns, bodies; what the answers say; nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from polyolo import months
from tests.integration.gateway_parts import (
    METERING,
    Platform,
    bearer,
    platform,
    read,
    respond,
    route,
    until,
)


async def with_plan(made: Platform, **plan: Any) -> None:
    """Give tenant a a plan, and wait until it is in force."""
    made.publish(route("a", made.socket("a"), **plan))
    await made.revision()


class Gate:
    """A runtime that answers when it is told to."""

    def __init__(self, made: Platform, letter: str) -> None:
        self.inside = 0
        self.go = asyncio.Semaphore(0)
        made.runtimes[letter].behave = self

    async def __call__(self, seen: Any, receive: Any, send: Any) -> None:
        await read(receive, seen)
        self.inside += 1
        await self.go.acquire()
        self.inside -= 1
        await respond(send, 200, b"{}", METERING)


async def test_over_the_rate_is_429():
    """With Retry-After and both RateLimit fields; the neighbour, without a rate, has none."""
    async with platform() as made:
        await with_plan(made, requests_per_second=0.01, burst=3)
        answers = [await made.detect("a") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert {a.headers["ratelimit-policy"] for a in answers} == {'"detections";q=3;w=300'}
        left = [answer.headers["ratelimit"].split(";")[1] for answer in answers]
        assert left == ["r=2", "r=1", "r=0", "r=0", "r=0"]
        refused = answers[-1]
        assert 95 <= int(refused.headers["retry-after"]) <= 100
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:polyolo:error:rate-limited"
        assert "0.01 requests a second" in refused.json()["detail"]
        other = await made.detect("b")
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("ratelimit")]
        assert len(made.runtimes["a"].requests) == 3
        await until(lambda: sum(r.requests for r in made.control.usage.values()) == 6)
        summed = [r for r in made.control.usage.values() if r.status == 429]
        assert [record.requests for record in summed] == [2]  # no flood of records


async def test_a_gateway_that_starts_gives_no_burst():
    """Who had a rate before it started may have used the burst at the one before it."""
    async with platform(ready=False) as made:
        made.publish(route("a", made.socket("a"), requests_per_second=0.01, burst=3))
        await made.revision()
        assert (await made.detect("a")).status_code == 429
        made.publish(*(route(n, made.socket(n), requests_per_second=0.01, burst=3) for n in "ab"))
        await made.revision()
        assert (await made.detect("b")).status_code == 200


async def test_every_answer_tells_of_the_rate():
    """Errors of the runtime, of the door and of the way between, too; also below /v2."""
    async with platform(max_body_bytes=1000) as made:
        await with_plan(made, requests_per_second=0.01, burst=9)

        async def behave(seen, receive, send):
            await read(receive, seen)
            await respond(send, 422, b"{}", METERING)

        made.runtimes["a"].behave = behave
        answers = [await made.detect("a"), await made.detect("a", bytes(2000))]
        answers.append(await made.detect("a", headers={"polyolo-timeout-ms": "x"}))
        answers.append(await made.client.post("/v2/models/m/infer", headers=bearer("a")))
        assert [answer.status_code for answer in answers] == [422, 413, 422, 422]
        left = [answer.headers["ratelimit"].split(";")[1] for answer in answers]
        assert left == ["r=8", "r=7", "r=6", "r=5"]
        ready = await made.client.get("/v2/health/ready", headers=bearer("a"))
        assert ready.headers["ratelimit"].startswith('"calls";r=8')  # no detection


async def test_a_changed_rate_is_in_force_with_its_snapshot():
    """From one snapshot to the next, without a restart."""
    async with platform() as made:
        await with_plan(made, requests_per_second=0.01, burst=1)
        assert [(await made.detect("a")).status_code for _ in range(2)] == [200, 429]
        await with_plan(made)
        assert [(await made.detect("a")).status_code for _ in range(3)] == [200] * 3


async def test_a_used_up_quota_is_402():
    """Also for what has not been told to control yet; at the turn of the month there is more."""
    async with platform(usage_flush_s=60) as made:
        await with_plan(made, images_per_month=3)
        answers = [await made.detect("a") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 402, 402]
        assert "used up" in answers[-1].json()["detail"]
        assert (await made.detect("b")).status_code == 200
        assert (await made.client.get("/v2/health/ready", headers=bearer("a"))).status_code == 200


async def test_the_quota_counts_what_other_gateways_served():
    """Control's answer to a batch of usage, and a snapshot that says so, stop this gateway too."""
    async with platform(usage_flush_s=0.01) as made:
        await with_plan(made, images_per_month=10)
        made.control.used_before = {"t_a": 8}
        assert (await made.detect("a")).status_code == 200
        await until(lambda: made.control.batches)
        await until_status(made, 402)
        used = sum(record.images for record in made.control.usage.values())
        assert used == 2
        now = months.label(time.time())
        made.publish(
            route("a", made.socket("a"), images_per_month=20),
            route("b", made.socket("b"), images_per_month=20, used=20, month=now),
        )
        await made.revision()
        assert (await made.detect("a")).status_code == 200
        assert (await made.detect("b")).status_code == 402


async def until_status(made: Platform, status: int) -> None:
    async with asyncio.timeout(5):
        while (await made.detect("a")).status_code != status:
            await asyncio.sleep(0.02)


async def test_no_more_are_inside_runtimes_than_there_are_slots():
    """The others wait at the door, and a tenant that asks now and then waits for one slot only."""
    async with platform(slots=1) as made:
        many, few = Gate(made, "a"), Gate(made, "b")
        flood = [asyncio.create_task(made.detect("a")) for _ in range(20)]
        await until(lambda: many.inside == 1)
        await waiting(made, "a", 19)
        one = asyncio.create_task(made.detect("b"))
        await waiting(made, "b", 1)
        assert (many.inside, few.inside) == (1, 0)
        many.go.release()
        await until(lambda: few.inside == 1)
        assert many.inside == 0
        few.go.release()
        assert (await one).status_code == 200
        for _ in flood:
            many.go.release()
        assert {answer.status_code for answer in await asyncio.gather(*flood)} == {200}
        await waiting(made, "a", 0)


async def waiting(made: Platform, letter: str, number: int) -> None:
    """Wait until the metric says that so many requests of a tenant wait for their turn."""
    wanted = f'queue_depth{{model="",tenant="tenant-{letter}"}} {number}.0'
    for _ in range(500):
        if wanted in await made.metrics():
            return
    raise AssertionError(f"never had {number} requests waiting")


async def test_the_oldest_that_waits_goes_when_a_tenant_has_too_many():
    """503 with Retry-After for it, a place for the newcomer; the neighbour's plan is its own."""
    async with platform(slots=1) as made:
        await with_plan(made, max_in_flight=3)
        gate = Gate(made, "a")
        inside = asyncio.create_task(made.detect("a"))
        await until(lambda: gate.inside == 1)
        queue = []
        for number in range(2):
            queue.append(asyncio.create_task(made.detect("a")))
            await waiting(made, "a", number + 1)
        newcomer = asyncio.create_task(made.detect("a"))
        shed = await asyncio.wait_for(queue[0], 5)
        assert shed.status_code == 503
        assert int(shed.headers["retry-after"]) >= 1
        for _ in range(3):
            gate.go.release()
        answers = await asyncio.gather(inside, queue[1], newcomer)
        assert [answer.status_code for answer in answers] == [200] * 3
        text = await made.metrics()
        assert 'polyolo_shed_total{reason="full",tenant="tenant-a"} 1.0' in text


async def test_a_request_that_would_come_too_late_is_summedat_once():
    """Its client said how long it waits; the runtime is told what is left of that time."""
    async with platform(slots=1) as made:
        gate = Gate(made, "a")
        first = asyncio.create_task(made.detect("a", headers={"polyolo-timeout-ms": "20000"}))
        await until(lambda: gate.inside == 1)
        left = int(made.runtimes["a"].requests[0].values("polyolo-timeout-ms")[0])
        assert 15_000 < left <= 20_000
        late = await made.detect("a", headers={"polyolo-timeout-ms": "10"})
        assert late.status_code == 503
        assert 'reason="hopeless",tenant="tenant-a"} 1.0' in await made.metrics()
        short = await made.detect("a", headers={"polyolo-timeout-ms": "200"})
        assert short.status_code == 504
        gate.go.release()
        assert (await first).status_code == 200
        assert len(made.runtimes["a"].requests) == 1


async def test_a_slow_body_takes_no_turn():
    """Requests whose bodies do not come hold nobody up, their own tenant's others included."""
    async with platform(slots=1) as made:
        key = bearer("a")["authorization"][7:].encode()
        head = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\nx-api-key: %b\r\n" % key
        slow = []
        for _ in range(30):
            connection = socket.create_connection(("127.0.0.1", made.port))
            connection.sendall(head + b"content-length: 1000000\r\n\r\n" + bytes(10_000))
            slow.append(connection)
        await made.in_flight("a", 30)
        assert [(await made.detect(letter)).status_code for letter in "ab"] == [200, 200]
        for connection in slow:
            connection.close()
        await made.in_flight("a", 0)


async def test_the_bytes_of_a_tenant_are_bounded():
    """Bodies beyond its share of the memory wait, unread; a neighbour's always have room."""
    async with platform(held_bytes=3_000_000, all_held_bytes=4_000_000) as made:
        made.publish(*(route(n, made.socket(n), max_in_flight=100) for n in "ab"))
        await made.revision()
        gates = {letter: Gate(made, letter) for letter in "ab"}

        async def unsized() -> AsyncIterator[bytes]:
            yield bytes(900_000)

        mine = [asyncio.create_task(made.detect("a", bytes(900_000))) for _ in range(5)]
        await until(lambda: gates["a"].inside == 3)
        assert (await made.detect("a", unsized())).status_code == 503
        other = [asyncio.create_task(made.detect("b", bytes(900_000))) for _ in range(2)]
        await until(lambda: gates["b"].inside == 2)  # beyond the whole, but within its share
        assert gates["a"].inside == 3
        assert len(made.runtimes["a"].requests) == 3
        for gate in gates.values():
            for _ in range(10):
                gate.go.release()
        assert {answer.status_code for answer in await asyncio.gather(*mine, *other)} == {200}
        assert (await made.detect("a", bytes(2_900_000))).status_code == 200  # all is given back


async def test_calls_of_control_are_shared_too():
    """One tenant's slow calls leave room for others'."""
    async with platform(control_connections=4, control_share=2) as made:
        gate = Gate(made, "a")
        made.control.behave = gate

        async def call(letter: str, **more: Any) -> int:
            return (await made.client.get("/api/v1/x", headers=bearer(letter), **more)).status_code

        held = [asyncio.create_task(call("a")) for _ in range(2)]
        await until(lambda: gate.inside == 2)
        assert await call("a") == 503
        others = asyncio.create_task(call("b"))
        await until(lambda: gate.inside == 3)
        for _ in range(3):
            gate.go.release()
        assert await asyncio.gather(*held, others) == [200] * 3


@pytest.mark.parametrize("pieces", [1, 40])
async def test_large_bodies_arrive_whole(pieces: int):
    """With or without a length, in one piece or many."""

    async def body() -> AsyncIterator[bytes]:
        for number in range(pieces):
            yield bytes([number]) * (2_000_000 // pieces)

    async with platform() as made:
        answer = await made.detect("a", body())
        assert answer.json() == {"from": "a", "bytes": 2_000_000}
        seen = made.runtimes["a"].requests[0]
        assert seen.body == b"".join([piece async for piece in body()])
        assert seen.values("content-length") == ["2000000"]
