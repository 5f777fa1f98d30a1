"""Requests to servers of others, over real sockets: whatever is there, it ends, and soon."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from polyolo.control.outbound import Outbound, OutboundError

Speaks = Callable[[asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@asynccontextmanager
async def server(speaks: Speaks) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a server that reads a request's head, then speaks. Yields its URL and the heads."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await speaks(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with running:
        port = running.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/x", heads


def says(*parts: bytes) -> Speaks:
    """Return what sends these bytes and hangs up."""

    async def speak(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return speak


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, for ever: no single wait is long."""
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    """The same within the headers."""
    writer.write(HEAD + b"x-endless: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def flood(writer: asyncio.StreamWriter) -> None:
    """Send more than anybody wants."""
    writer.write(HEAD + b"\r\n")
    for _ in range(100_000):
        writer.write(b" " * 65536)
        await writer.drain()


async def test_an_answer_is_read():
    """Status and object; no compression is asked for, nothing of ours is told."""
    async with server(says(HEAD, b'\r\n{"a": [1]}')) as (url, heads):
        answer = await Outbound().ask("POST", url, form={"b": "c d"}, headers={"x-own": "1"})
    assert answer == (200, {"a": [1]})
    assert b"accept-encoding: identity\r\n" in heads[0].lower()
    assert b"x-own: 1\r\n" in heads[0].lower()
    assert b"cookie" not in heads[0].lower()


@pytest.mark.parametrize(
    ("speaks", "reason"),
    [
        (drip, "within"),
        (drip_head, "within"),
        (flood, "more than"),
        (says(HEAD + b"content-length: 99\r\n\r\n{}"), "RemoteProtocolError"),
        (says(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n"), "302"),
        (says(b"HTTP/1.1 307 No\r\nlocation: /y\r\ncontent-length: 2\r\n\r\n{}"), "307"),
        (says(HEAD, b"content-encoding: gzip\r\n\r\n", gzip.compress(b"{}")), "no answer of"),
        (says(HEAD, b"\r\n[1]"), "not a JSON object"),
        (says(HEAD, b"\r\n" + b"[" * 100_000), "not a JSON object"),
        (says(HEAD, b"\r\n<html>"), "not a JSON object"),
        (says(b"nonsense\r\n\r\n"), "RemoteProtocolError"),
        (says(), "RemoteProtocolError"),
    ],
)
async def test_whatever_else_comes_is_an_error_soon(speaks, reason):
    """Slow, endless, sent elsewhere, packed, cut off or no JSON: an error, and no long wait."""
    async with server(speaks) as (url, _), asyncio.timeout(20):
        with pytest.raises(OutboundError, match=reason):
            await Outbound(deadline_s=0.5).ask("GET", url)


async def test_a_redirect_is_not_followed():
    """The other place never hears of it, the authorization header included."""
    async with server(says(HEAD, b"\r\n{}")) as (elsewhere, heads):
        found = f"HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\n\r\n".encode()
        async with server(says(found)) as (url, _):
            with pytest.raises(OutboundError):
                await Outbound().ask("GET", url, headers={"authorization": "Bearer secret"})
        assert heads == []


async def test_nobody_there_and_no_proxy_for_this_machine(monkeypatch):
    """A closed port is told at once; a proxy of the environment is not asked for 127.0.0.1."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(OutboundError, match="ConnectError"):
        await Outbound().ask("GET", "http://127.0.0.1:9/")
    assert time.monotonic() - began < 5
    async with server(says(HEAD, b"\r\n{}")) as (url, _):
        assert await Outbound().ask("GET", url) == (200, {})


async def test_a_header_that_splits_is_not_sent():
    """A line break in a value is an error here, and nothing at the other end."""
    async with server(says(HEAD, b"\r\n{}")) as (url, heads):
        with pytest.raises(OutboundError):
            await Outbound().ask("GET", url, headers={"authorization": "Bearer a\r\nx: y"})
    assert heads == []
