"""Connections that are held open: those that ask nothing go first, and keep nobody out."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from polyolo.gateway.connections import Connections, room
from tests.integration.gateway_parts import respond, served, until

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"


class Door:
    """A server of few connections, which answers some requests only when it is told to."""

    def __init__(self, most: int, **more: Any) -> None:
        self.connections = Connections(most, **more)
        self.go = asyncio.Event()
        self.address = ("", 0)
        self.opened: list[socket.socket] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/held":
            await self.go.wait()
        if scope["path"] == "/refused":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await self.go.wait()
            await send({"type": "http.response.body", "body": b""})
            return
        await respond(send, 200, b"ok", [])

    def open(self, *, of: str = "127.0.0.1", says: bytes = b"") -> socket.socket:
        """Open a connection from an address of this machine, and send what it says."""
        made = socket.create_connection(self.address, timeout=5, source_address=(of, 0))
        self.opened.append(made)
        made.setblocking(False)
        made.send(says)
        return made

    async def ask(self, connection: socket.socket, request: bytes = GET) -> bytes:
        """Send a request and return what comes back; empty if the connection was closed."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            await loop.sock_sendall(connection, request)
            return await asyncio.wait_for(loop.sock_recv(connection, 65536), 5)
        return b""


@asynccontextmanager
async def door(most: int, **more: Any) -> AsyncIterator[Door]:
    made = Door(most, **more)
    sweeping = asyncio.create_task(made.connections.sweep())
    async with served(
        made, host="127.0.0.1", port=0, protocol=made.connections.protocol
    ) as listener:
        made.address = listener.getsockname()
        try:
            yield made
        finally:
            made.go.set()
            for connection in made.opened:
                connection.close()
    sweeping.cancel()


def closed(connection: socket.socket) -> bool:
    """Say whether the other end has closed a connection that has nothing to say."""
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_held_connections_keep_nobody_out():
    """Ten times what there is room for: the oldest are closed, whoever comes is answered."""
    async with door(20) as made:
        held = []
        for _ in range(200):
            held.append(made.open())
            await until(lambda: len(made.connections) == min(len(held), 20))
        assert len(made.connections) == 20
        await until(lambda: all(map(closed, held[:180])))
        assert not any(map(closed, held[180:]))
        newcomer = made.open()
        assert b"200 OK" in await made.ask(newcomer)


async def test_who_holds_the_most_loses_them():
    """A neighbour's few idle connections stay open beside somebody's many."""
    async with door(20) as made:
        neighbours = [made.open(of="127.0.0.2") for _ in range(3)]
        await until(lambda: len(made.connections) == 3)
        many = []
        for _ in range(50):
            many.append(made.open())
            await until(lambda: len(made.connections) == min(len(many) + 3, 20))
        await until(lambda: sum(map(closed, many)) == 33)
        assert not any(map(closed, neighbours))
        for one in neighbours:
            assert b"200 OK" in await made.ask(one)


async def test_who_is_served_stays():
    """A connection with a request in hand is not closed for others; then there is no room."""
    async with door(5) as made:
        busy = [made.open(says=GET.replace(b"/ ", b"/held ")) for _ in range(5)]
        await until(lambda: len(every(made)) == 5)
        await until(lambda: not any(map(made.connections.is_idle, every(made))))
        late = made.open()
        assert await made.ask(late) == b""
        made.go.set()
        for one in busy:
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(one, 999), 5)
            assert b"200 OK" in answer


async def test_who_was_refused_and_goes_on_sending_is_closed():
    """An answer that is out needs no place any more, however slowly the body comes."""
    async with door(5) as made:
        for _ in range(5):
            made.open(says=POST.replace(b"/ ", b"/refused "))
        await until(lambda: sum(one.lingers for one in every(made)) == 5)
        newcomer = made.open()
        assert b"200 OK" in await made.ask(newcomer)


async def test_a_head_that_does_not_come_ends():
    """Nothing, half a head, one letter after the other: none of it holds a connection for long."""
    async with door(20, head_s=0.3) as made:
        half = b"GET / HTTP/1.1\r\nx: "
        held = [made.open(), made.open(says=half), made.open(says=GET + half)]

        async def trickle() -> None:
            loop = asyncio.get_running_loop()
            while True:
                await loop.sock_sendall(held[1], b"x")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        await until(lambda: len(made.connections) == 3)
        await until(lambda: len(made.connections) == 0)
        trickling.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await trickling


async def test_a_head_without_end_is_cut():
    """A head of megabytes is nobody's; the connection is closed before it fills the memory."""
    async with door(20) as made:
        endless = made.open(says=b"GET / HTTP/1.1\r\n")
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            for _ in range(1000):
                await loop.sock_sendall(endless, b"x-%d: " % 1 + b"y" * 2000 + b"\r\n")
        await until(lambda: len(made.connections) == 0)


def every(made: Door) -> list[Any]:
    sources = made.connections._sources.values()
    return [one for source in sources for one in (*source.idle, *source.busy)]


def test_there_is_room_for_many():
    """The bound on open files is raised as far as it may be, and leaves something over."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        number = room()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard if hard != resource.RLIM_INFINITY else 65_536, 65_536)
        assert 64 <= number < soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
