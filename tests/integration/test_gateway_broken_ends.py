"""The gateway when an end breaks: too much, too early, too late, gone, not there yet."""

from __future__ import annotations

import asyncio
import io
import socket
import tempfile

import aiohttp
import httpx
import pytest

from polyolo.types import Phase
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

BIG = 30 * 1024 * 1024


async def big():
    for _ in range(BIG // 65536):
        yield b"\0" * 65536


async def with_httpx(url: str, headers: dict[str, str], *, chunked: bool) -> tuple[int, str]:
    async with httpx.AsyncClient() as client:
        body = big() if chunked else bytes(BIG)
        answer = await client.post(url, content=body, headers=headers)
        return answer.status_code, answer.json()["title"]


async def with_aiohttp(url: str, headers: dict[str, str], *, chunked: bool) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client:
        body = big() if chunked else io.BytesIO(bytes(BIG))
        async with client.post(url, data=body, headers=headers) as answer:
            return answer.status, (await answer.json(content_type=None))["title"]


async def with_curl(
    url: str, headers: dict[str, str], *, chunked: bool, more: tuple[str, ...] = ()
) -> tuple[int, str]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(BIG)
        lines = [f"{name}: {value}" for name, value in headers.items()]
        lines += ["transfer-encoding: chunked"] if chunked else []
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-w", "\n%{http_code}", "--data-binary", f"@{file.name}", url,
            *(part for line in lines for part in ("-H", line)), *more,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    assert process.returncode == 0
    body, _, status = out.decode().rpartition("\n")
    return int(status), httpx.Response(200, content=body).json()["title"]


async def with_curl_at_once(url: str, headers: dict[str, str], *, chunked: bool):
    """As old clients do: no waiting for 100 Continue, and the connection closed at the end."""
    more = ("-H", "expect:", "-H", "connection: close")
    return await with_curl(url, headers, chunked=chunked, more=more)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("client", [with_httpx, with_aiohttp, with_curl, with_curl_at_once])
async def test_a_refused_upload_is_answered_not_reset(client, chunked: bool):
    """A client that sends 30 MB reads 401 or 413, however it sends; no runtime is the wiser."""
    async with platform() as made:
        url = f"http://127.0.0.1:{made.port}/v1/detect"
        assert await client(url, {}, chunked=chunked) == (401, "Not authenticated")
        assert await client(url, bearer("a"), chunked=chunked) == (413, "Too large")
        if not chunked:
            assert made.runtimes["a"].requests == []
        good = await made.detect("a")
        assert good.status_code == 200


async def test_a_chunked_body_is_counted_and_cut():
    """A body without length is cut once it is over the bound, and no runtime hears of it."""
    async with platform(max_body_bytes=1_000_000) as made:

        async def pieces():
            for _ in range(20):
                yield b"x" * 100_000

        answer = await made.detect("a", pieces())
        assert answer.status_code == 413
        assert made.runtimes["a"].requests == []
        exact = await made.detect("a", bytes(1_000_000))
        assert exact.status_code == 200


async def test_an_early_answer_passes():
    """What the runtime says before it has read the body reaches the client, with its metering."""

    async def behave(seen, receive, send):
        await respond(send, 415, b"{}", METERING)

    async with platform() as made:
        made.runtimes["a"].behave = behave
        for body in (bytes(20_000_000), bytes(1000)):
            answer = await made.detect("a", body)
            assert answer.status_code == 415
        made.runtimes["a"].behave = None
        assert (await made.detect("a")).status_code == 200
        await until(lambda: len(made.control.usage) == 3)
        assert sorted(r.status for r in made.control.usage.values()) == [200, 415, 415]


async def half_sent(made: Platform, length: int, body: bytes) -> socket.socket:
    """Send a detection's head and the body given, and return the open connection."""
    connection = socket.create_connection(("127.0.0.1", made.port))
    head = (
        f"POST /v1/detect HTTP/1.1\r\nhost: x\r\nx-api-key: {bearer('a')['authorization'][7:]}\r\n"
    )
    await asyncio.to_thread(
        connection.sendall, head.encode() + b"content-length: %d\r\n\r\n" % length + body
    )
    return connection


@pytest.mark.parametrize("size", [1000, 1_000_000])
async def test_a_client_that_hangs_up_stops_the_work(size: int):
    """Once the client is gone the runtime sees it too; the record says 499."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        assert (await receive())["type"] == "http.disconnect"
        seen.hung_up = True

    async with platform() as made:
        made.runtimes["a"].behave = behave
        connection = await half_sent(made, size, bytes(size))
        await until(lambda: made.runtimes["a"].requests)
        connection.close()
        await until(lambda: made.runtimes["a"].requests[0].hung_up)
        await until(lambda: made.control.usage)
        assert [r.status for r in made.control.usage.values()] == [499]


async def test_a_client_that_hangs_up_halfway_never_reaches_the_runtime_whole():
    """A body that stops coming is no request, and takes no place at the runtime."""
    async with platform() as made:
        for length, part in ((1_000_000, 500_000), (1000, 4)):
            connection = await half_sent(made, length, bytes(part))
            await made.in_flight("a", 1)
            connection.close()
        await until(lambda: len(made.control.usage) == 2)
        assert {r.status for r in made.control.usage.values()} == {499}
        assert made.runtimes["a"].requests == []


async def test_requests_wait_for_a_starting_runtime():
    """Many requests to a runtime that starts are all answered once it is ready, as cold."""
    async with platform() as made:
        for phase in (Phase.ABSENT, Phase.STARTING):
            made.publish(route("a", None, phase, max_in_flight=200))
            await made.revision()
            before = len(made.runtimes["a"].requests)
            waiting = [asyncio.create_task(made.detect("a")) for _ in range(80)]
            assert (await made.detect("b")).status_code == 200
            await made.in_flight("a", 80)
            assert len(made.runtimes["a"].requests) == before
            made.publish(route("a", made.socket("a"), max_in_flight=200))
            answers = await asyncio.gather(*waiting)
            assert {answer.status_code for answer in answers} == {200}
        assert len(made.runtimes["a"].requests) == 160
        assert all(s.values("polyolo-cold-start") == ["1"] for s in made.runtimes["a"].requests)
        assert made.runtimes["b"].requests[0].values("polyolo-cold-start") == []
        text = await made.metrics()
        assert 'polyolo_cold_starts_total{model="pcb",tenant="tenant-a"} 160.0' in text
        await until(lambda: len(made.control.usage) == 162)
        assert sum(record.cold_start for record in made.control.usage.values()) == 160


async def test_the_wait_for_a_start_is_bounded():
    """Not more requests than allowed wait, and not longer than allowed: then 503."""
    async with platform(hold_requests=3, hold_s=0.5) as made:
        made.publish(route("a", None, Phase.STARTING))
        await made.revision()
        answers = await asyncio.gather(*(made.detect("a") for _ in range(5)))
        assert [answer.status_code for answer in answers] == [503] * 5
        titles = sorted(answer.json()["title"] for answer in answers)
        assert titles == ["Not ready"] * 3 + ["Overloaded"] * 2
        assert all(answer.headers["retry-after"] == "1" for answer in answers)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPING])
async def test_a_runtime_that_is_not_about_to_answer_is_503_at_once(phase: Phase):
    """Nobody waits for a runtime that failed or stops; the neighbour goes on."""
    async with platform(hold_s=60) as made:
        made.publish(route("a", made.socket("a"), phase))
        await made.revision()
        answer = await asyncio.wait_for(made.detect("a"), 5)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await made.detect("b")).status_code == 200


@pytest.mark.parametrize(
    "says", ["nothing listens", b"", b"HTTP/1.1 200 OK\r\ncont", b"garbage\r\n"]
)
async def test_a_runtime_that_breaks_off_is_503(says):
    """Refused, closed without a word, broken off in the head, no HTTP: 503 with Retry-After."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(says)
        await writer.drain()
        writer.transport.abort()

    async with platform(hold_s=0.1) as made:
        broken = made.home / "broken.sock"
        server = None
        if not isinstance(says, str):
            server = await asyncio.start_unix_server(answer, broken)
        made.publish(route("a", broken))
        await made.revision()
        for body in (b"small", bytes(2_000_000)):
            got = await made.detect("a", body)
            assert (got.status_code, got.headers["retry-after"]) == (503, "1")
            assert got.headers["content-type"] == "application/problem+json"
        assert (await made.detect("b")).status_code == 200
        if server is not None:
            server.close()
            await server.wait_closed()


async def test_an_answer_cut_short_is_not_passed_as_whole():
    """When the runtime dies in the middle of a long answer the client sees that it is cut."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(200_000))
        await writer.drain()
        writer.close()

    async with platform() as made:
        server = await asyncio.start_unix_server(answer, made.home / "broken.sock")
        made.publish(route("a", made.home / "broken.sock"))
        await made.revision()
        with pytest.raises(httpx.RemoteProtocolError):
            await made.detect("a")
        server.close()
        await server.wait_closed()


async def test_a_kept_connection_that_died_costs_no_request():
    """A runtime that closes a connection on its second request gets it again over a new one."""
    served = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for turn in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            if turn:
                break  # as if it had been closed just before the request came
            await reader.readexactly(7)
            served.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()
        writer.close()

    async with platform() as made:
        server = await asyncio.start_unix_server(answer, made.home / "odd.sock")
        made.publish(route("a", made.home / "odd.sock"))
        await made.revision()
        for _ in range(4):
            assert (await made.detect("a")).status_code == 200
        assert len(served) == 4
        server.close()
        await server.wait_closed()


async def test_one_tenant_cannot_take_more_than_its_plan_holds():
    """Above max_in_flight a tenant gets 503 Overloaded at once; its neighbour notices nothing."""
    release = asyncio.Event()

    async def behave(seen, receive, send):
        await read(receive, seen)
        await release.wait()
        await respond(send, 200, b"ok", METERING)

    async with platform() as made:
        made.runtimes["a"].behave = behave
        made.publish(route("a", made.socket("a"), max_in_flight=4))
        await made.revision()
        inside = [asyncio.create_task(made.detect("a")) for _ in range(4)]
        await until(lambda: len(made.runtimes["a"].requests) == 4)
        refused = await made.detect("a")
        assert (refused.status_code, refused.json()["title"]) == (503, "Overloaded")
        assert refused.headers["retry-after"] == "1"
        assert (await made.detect("b")).status_code == 200
        release.set()
        assert [a.status_code for a in await asyncio.gather(*inside)] == [200] * 4
        assert (await made.detect("a")).status_code == 200


async def test_a_request_that_takes_too_long_is_504():
    """The deadline ends a request to a runtime that hangs, and one whose body does not come."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        await receive()
        seen.hung_up = True

    async with platform(deadline_s=0.5) as made:
        made.runtimes["a"].behave = behave
        answer = await made.detect("a")
        assert (answer.status_code, answer.json()["title"]) == (504, "Deadline passed")
        await until(lambda: made.runtimes["a"].requests[0].hung_up)
        connection = await half_sent(made, 1000, b"some")
        got = await asyncio.to_thread(connection.recv, 65536)
        connection.close()
        assert got.startswith(b"HTTP/1.1 504")


async def test_connections_to_an_endpoint_that_is_gone_are_closed():
    """When a tenant leaves the snapshot its runtime sees the gateway's connections close."""
    open_ones: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        await reader.readuntil(b"\r\n\r\npicture")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await reader.read() == b""
        open_ones.discard(writer)
        writer.close()

    async with platform() as made:
        server = await asyncio.start_unix_server(answer, made.home / "odd.sock")
        made.publish(route("a", made.home / "odd.sock"))
        await made.revision()
        assert (await made.detect("a")).status_code == 200
        assert len(open_ones) == 1
        made.publish()
        await until(lambda: not open_ones)
        server.close()
        await server.wait_closed()
