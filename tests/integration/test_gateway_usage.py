"""Usage through the gateway: each request once, whatever becomes of it and of control."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import httpx
import pytest

from polyolo.types import Phase, RuntimeStatus
from tests.e2e.platform import free_port
from tests.integration.gateway_parts import (
    TOKEN,
    bearer,
    platform,
    read,
    respond,
    route,
    until,
)


async def test_each_request_leaves_one_record():
    """Good and failed requests of a known tenant are recorded once, refused strangers are not."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        await respond(send, 422, b"{}", [])

    async with platform(max_body_bytes=1000) as made:
        await made.detect("a", b"12345")
        made.runtimes["b"].behave = behave
        await made.detect("b")
        await made.detect("b", bytes(1001))
        await made.client.post("/v2/models/m/infer", content=b"{}", headers=bearer("a"))
        await made.client.get("/v2/models/m", headers=bearer("a"))  # not a detection
        await made.detect("c")
        made.publish(route("b", None, Phase.FAILED))
        await made.revision()
        await made.detect("b")
        await until(lambda: len(made.control.usage) == 5)
        records = sorted(made.control.usage.values(), key=lambda r: (r.tenant, r.status, r.at))
        assert [(r.tenant, r.status) for r in records] == [
            ("t_a", 200), ("t_a", 200), ("t_b", 413), ("t_b", 422), ("t_b", 503),
        ]  # fmt: skip
        first = records[0]
        assert (first.model, first.version, first.images, first.engine_ms) == ("pcb", 2, 1, 8.5)
        assert first.bytes_in == 5
        assert (records[3].model, records[3].images) == ("", 0)


async def test_a_batch_is_repeated_with_the_same_ids_until_it_is_taken():
    """While control refuses, the same records come again; once taken, they come no more."""
    async with platform(usage_flush_s=0.02) as made:
        made.control.usage_status = 503
        await made.detect("a")
        await until(lambda: len(made.control.batches) >= 3)
        assert len(made.control.usage) == 1
        made.control.usage_status = 200
        await until(lambda: len(made.control.batches) >= 4)
        await made.detect("a")
        await until(lambda: len(made.control.usage) == 2)
        assert len(made.control.batches[-1]) == 1


async def test_a_full_batch_does_not_wait():
    """Records go out in full batches without waiting for the time to come."""
    async with platform(usage_flush_s=60, usage_batch=5) as made:
        for _ in range(10):
            await made.detect("a")
        await until(lambda: len(made.control.usage) == 10)
        assert [len(batch) for batch in made.control.batches] == [5, 5]


async def test_what_is_kept_for_control_is_bounded():
    """With control away for too long the oldest records are lost, counted and logged."""
    async with platform(usage_flush_s=60, usage_buffer=3) as made:
        for size in range(1, 6):
            await made.detect("a", bytes(size))
        assert "polyolo_usage_dropped_total 2.0" in await made.metrics()
    assert sorted(record.bytes_in for record in made.control.usage.values()) == [3, 4, 5]


async def test_usage_is_handed_over_when_the_gateway_ends():
    """A gateway that is stopped right after a request loses no record."""
    async with platform(usage_flush_s=60) as made:
        await made.detect("a")
        assert made.control.usage == {}
    assert len(made.control.usage) == 1


async def test_detections_go_on_while_control_is_away():
    """Without control the last snapshot serves; back again, control is heard and gets the usage."""
    async with platform(usage_flush_s=0.02) as made:
        home = made.home
        away = home / "control.away"
        (home / "control.sock").rename(away)
        made.control.close()  # ends the poll; the next finds nobody
        polls = len(made.control.polls)
        for _ in range(3):
            assert (await made.detect("a")).status_code == 200
        assert (await made.client.get("/api/v1/tenants")).status_code == 503
        assert (await made.client.get("/readyz")).status_code == 200
        made.control.closed = False
        made.publish(keys=[])
        away.rename(home / "control.sock")
        await until(lambda: len(made.control.polls) > polls)
        assert made.control.polls[-1].startswith("after=")
        await made.revision()
        assert (await made.detect("a")).status_code == 401
        await until(lambda: len(made.control.usage) == 3)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_serves_drains_and_ends(how: signal.Signals):
    """`python -m polyolo.gateway` gets ready, finishes what is in flight, hands over, exits 0.

    Meanwhile it hears of runtimes that are ready, but is no gateway any more that counts.
    """
    slow = asyncio.Event()

    async def behave(seen, receive, send):
        await read(receive, seen)
        await slow.wait()
        await respond(send, 200, b"late", [])

    async def awake(_: str) -> RuntimeStatus:
        await asyncio.sleep(3600)
        raise AssertionError

    async with platform() as made:
        made.runtimes["a"].behave = behave
        made.control.awake = awake
        made.publish(route("b", None, Phase.STARTING))
        free = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "polyolo.gateway", "--port", str(free),
            "--control", f"unix:{made.home}/control.sock",
            env=os.environ | {"POLYOLO_GATEWAY_TOKEN": TOKEN}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free}") as client:
            while True:
                try:
                    if (await client.get("/readyz")).status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.returncode is None
                await asyncio.sleep(0.05)
            late = asyncio.create_task(client.post("/v1/detect", content=b"x", headers=bearer("a")))
            held = asyncio.create_task(client.post("/v1/detect", content=b"x", headers=bearer("b")))
            await until(lambda: made.runtimes["a"].requests)
            while (
                'in_flight{model="",tenant="tenant-b"} 1.0'
                not in (await client.get("/metrics")).text
            ):
                await asyncio.sleep(0.01)
            assert not any("&gateway=&" in poll for poll in made.control.polls)
            process.send_signal(how)
            await until(lambda: any("&gateway=&" in poll for poll in made.control.polls))
            made.publish()
            assert (await held).status_code == 200
            slow.set()
            assert (await late).text == "late"
        assert await process.wait() == 0
        log = (await process.stderr.read()).decode()
        assert '"tenant":"tenant-a"' in log
        assert bearer("a")["authorization"][7:] not in log
        assert len(made.control.usage) == 2


async def test_wrong_usage_is_a_sentence():
    """Without the token, or on a taken port, the process says what to do and ends."""
    wanted = [
        ({}, 2, "POLYOLO_GATEWAY_TOKEN"),
        ({"POLYOLO_GATEWAY_TOKEN": "x"}, 1, "cannot listen"),
    ]
    async with platform() as made:
        for more, status, sentence in wanted:
            environment = {k: v for k, v in os.environ.items() if not k.startswith("POLYOLO_")}
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "polyolo.gateway", "--port", str(made.port),
                "--control", "unix:/nowhere",
                env=environment | more, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, err = await process.communicate()
            assert process.returncode == status
            assert sentence in err.decode()
            assert "Traceback" not in err.decode()
