"""A runtime that sleeps, wakes, has several copies or has just gone: its clients see answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyolo.types import Phase, RuntimeStatus
from tests.integration.gateway_parts import Platform, platform, route, served, until


async def asleep(made: Platform, **plan: Any) -> None:
    """Put the runtime of tenant a to sleep."""
    made.publish(route("a", None, Phase.ASLEEP, **plan))
    await made.revision()


def status(made: Platform, phase: Phase, *sockets: Path) -> RuntimeStatus:
    endpoints = tuple(f"unix:{socket}" for socket in sockets)
    return RuntimeStatus(tenant="t_a", phase=phase, endpoints=endpoints)


async def test_many_requests_wake_a_runtime_once():
    """All are answered, as cold, after one call to control; later ones neither wait nor call."""
    async with platform() as made:
        go = asyncio.Event()

        async def awake(_: str) -> RuntimeStatus:
            await go.wait()
            return status(made, Phase.READY, made.socket("a"))

        made.control.awake = awake
        await asleep(made)
        waiting = [asyncio.create_task(made.detect("a")) for _ in range(90)]
        await made.in_flight("a", 90)
        assert (await made.detect("b")).status_code == 200
        assert made.runtimes["a"].requests == []
        go.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
        assert made.control.wakes == ["t_a"]
        seen = made.runtimes["a"].requests
        assert [one.values("polyolo-cold-start") for one in seen] == [["1"]] * 90
        assert (await made.detect("a")).status_code == 200
        assert made.runtimes["a"].requests[-1].values("polyolo-cold-start") == []
        assert made.control.wakes == ["t_a"]


async def test_the_snapshot_may_be_faster_than_the_answer():
    """Whichever way the gateway learns that the runtime answers, the request goes on."""
    async with platform() as made:

        async def awake(_: str) -> RuntimeStatus:
            made.publish()
            await asyncio.sleep(3600)
            raise AssertionError

        made.control.awake = awake
        await asleep(made)
        assert (await made.detect("a")).status_code == 200


async def test_control_hears_who_waits_for_one_that_starts():
    """After a restart many stand in line to start; who is waited for comes first."""
    async with platform() as made:

        async def awake(_: str) -> RuntimeStatus:
            return status(made, Phase.READY, made.socket("a"))

        made.control.awake = awake
        made.publish(route("a", None, Phase.STARTING))
        await made.revision()
        assert made.control.wakes == []
        assert (await asyncio.wait_for(made.detect("a"), 5)).status_code == 200
        assert made.control.wakes == ["t_a"]


async def test_a_lost_call_is_made_again():
    """Control fails twice, then says that it is on its way, then that it answers."""
    async with platform() as made:

        async def awake(tenant: str) -> RuntimeStatus:
            if len(made.control.wakes) < 3:
                raise RuntimeError("control has trouble")
            phase = Phase.ASLEEP if len(made.control.wakes) == 3 else Phase.READY
            return status(made, phase, *([made.socket("a")] if phase is Phase.READY else []))

        made.control.awake = awake
        await asleep(made)
        assert (await made.detect("a")).status_code == 200
        assert len(made.control.wakes) == 4


async def test_waiting_for_a_wake_is_bounded():
    """So many wait so long; all others, and those in the end, are told to come again."""
    async with platform(hold_requests=3, hold_s=0.6) as made:
        await asleep(made)
        answers = await asyncio.gather(*(made.detect("a") for _ in range(5)))
        assert [answer.status_code for answer in answers] == [503] * 5
        titles = sorted(answer.json()["title"] for answer in answers)
        assert titles == ["Not ready"] * 3 + ["Overloaded"] * 2
        assert 1 <= len(made.control.wakes) <= 4  # asked again, not in a spin


async def test_a_runtime_that_cannot_be_woken_is_503_at_once():
    """Control says that it has failed: nobody waits for it."""
    async with platform(hold_s=60) as made:

        async def awake(_: str) -> RuntimeStatus:
            return status(made, Phase.FAILED)

        made.control.awake = awake
        await asleep(made)
        answer = await asyncio.wait_for(made.detect("a"), 5)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_one_that_keeps_failing_is_cut_off():
    """503 at once, with the time of the next start; whatever control's clock says, in bounds."""
    async with platform(hold_s=60) as made:
        for due, told in ((12.0, {"11", "12"}), (-5.0, {"1"}), (1e6, {"30"})):
            failed = route("a", None, Phase.FAILED)
            made.publish(replace(failed, retry_at=int(time.time() + due)))
            await made.revision()
            answers = await asyncio.wait_for(
                asyncio.gather(*(made.detect("a") for _ in range(5))), 5
            )
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["retry-after"] for answer in answers} <= told


async def test_the_least_busy_copy_is_asked():
    """While one copy of two works on a request, the other one gets all the others."""
    async with platform() as made:
        go, begun = asyncio.Event(), asyncio.Event()

        async def slow(seen: Any, receive: Any, send: Any) -> None:
            begun.set()
            await go.wait()
            made.runtimes["a"].behave = None
            await made.runtimes["a"]({**SCOPE, "headers": []}, receive, send)

        made.runtimes["a"].behave = slow
        both = replace(
            route("a", made.socket("a")),
            endpoints=(f"unix:{made.socket('a')}", f"unix:{made.socket('b')}"),
        )
        made.publish(both)
        await made.revision()
        first = asyncio.create_task(made.detect("a"))
        await begun.wait()
        for _ in range(3):
            assert (await made.detect("a")).json()["from"] == "b"
        go.set()
        assert (await first).status_code == 200
        assert len(made.runtimes["b"].requests) == 3


SCOPE = {"method": "POST", "raw_path": b"/v1/detect", "query_string": b"", "path": "/v1/detect"}


@pytest.mark.parametrize("breaks", ["gone", "hangs up"])
async def test_a_copy_that_is_out_of_reach_costs_no_request(breaks: str):
    """The other one answers; the lost one is left alone for a while."""
    async with platform() as made:
        lost = made.home / "lost.sock"
        tried = []

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tried.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_unix_server(hang_up, lost)
        if breaks == "gone":
            server.close()
            await server.wait_closed()
        endpoints = (f"unix:{lost}", f"unix:{made.socket('a')}")
        made.publish(replace(route("a", None), endpoints=endpoints))
        await made.revision()
        answers = [await made.detect("a") for _ in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 10
        assert len(tried) <= 2  # once on a kept and once on a new connection
        assert made.control.wakes == []
        server.close()


async def test_a_runtime_put_to_sleep_a_moment_ago_is_woken():
    """The gateway does not know yet, and nobody answers: control is asked, the client answered."""
    async with platform() as made:
        fresh = made.home / "fresh.sock"

        async def awake(_: str) -> RuntimeStatus:
            return status(made, Phase.READY, fresh)

        made.control.awake = awake
        made.publish(route("a", made.home / "gone.sock"))
        await made.revision()
        async with served(made.runtimes["a"], path=fresh):
            answer = await made.detect("a")
        assert answer.status_code == 200
        assert made.control.wakes == ["t_a"]
        (seen,) = made.runtimes["a"].requests
        assert seen.values("polyolo-cold-start") == ["1"]


async def test_a_runtime_of_which_control_has_no_news_is_asked_again():
    """Nobody answers at its endpoint, and control says that it sleeps, but never in a snapshot: a
    request waits as for one that starts, the next one is answered by who answers there again."""
    async with platform(hold_s=1) as made:
        back = made.home / "back.sock"
        made.publish(route("a", back))
        await made.revision()
        answer = await asyncio.wait_for(made.detect("a"), 10)
        assert answer.status_code == 503
        assert "out of reach" in answer.json()["detail"]
        assert made.control.wakes
        async with served(made.runtimes["a"], path=back):
            assert (await asyncio.wait_for(made.detect("a"), 10)).status_code == 200


async def test_word_of_another_copy_may_be_late():
    """What is sent to one that has just gone is tried again until there is news, however often."""
    async with platform() as made:
        made.publish(route("a", made.home / "gone.sock"))
        await made.revision()
        asking = asyncio.create_task(made.detect("a"))
        await until(lambda: len(made.control.wakes) > 3)  # it has been there three times
        made.publish()
        assert (await asking).status_code == 200


async def test_what_may_have_killed_a_runtime_is_sent_once_more_only():
    """One that hangs up each time sees a request twice, over new connections."""
    async with platform() as made:
        tried = []

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tried.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_unix_server(hang_up, made.home / "dying.sock")
        made.publish(route("a", made.home / "dying.sock"))
        await made.revision()
        assert (await made.detect("a")).status_code == 503
        assert len(tried) <= 4  # each time once on a kept and once on a new connection
        server.close()


async def test_control_is_told_who_is_busy():
    """Every second the mean of what was in flight, held requests included; nothing while idle."""
    async with platform() as made:
        await made.detect("b")
        go = asyncio.Event()

        async def awake(_: str) -> RuntimeStatus:
            await go.wait()
            return status(made, Phase.READY, made.socket("a"))

        made.control.awake = awake
        await asleep(made)
        waiting = [asyncio.create_task(made.detect("a")) for _ in range(4)]
        reports = made.control.activity
        await until(lambda: reports and "t_b" not in reports[-1] and reports[-1]["t_a"] > 3.9)
        go.set()
        await asyncio.gather(*waiting)
        async with asyncio.timeout(5):
            while "t_a" in reports[-1]:
                await made.detect("b")
        assert all(0 < report["t_b"] <= 1 for report in reports if "t_b" in report)
