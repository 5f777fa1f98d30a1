"""One gateway takes over from another behind the same door: no connection is lost on the way."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress

import httpx
import pytest

from polyolo import rpc, web
from polyolo.control.changes import Changes
from tests.integration.gateway_parts import TOKEN, bearer, free_port, platform, respond, until


class Named:
    """Answers with its name, once it may."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0

    async def __call__(self, _: object, __: object, send: object) -> None:
        self.asked += 1
        await self.go.wait()
        await respond(send, 200, self.name.encode(), [])


async def ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> tuple[str, bool]:
    """Return who answers over a connection, and whether they ask for another one."""
    reader, writer = connection
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    return (await reader.readexactly(length)).decode(), b"connection: close" in head


async def test_connections_end_with_an_answer():
    """Idle ones are not closed but told with their next answer, as are those in use; who connects
    from then on gets the next one; the first ends when its last connection does."""
    door = web.bind(host="127.0.0.1")
    address = door.getsockname()
    retire, stop = asyncio.Event(), asyncio.Event()
    apps = Named("first"), Named("second")
    listening = door.dup()
    first = asyncio.create_task(web.serve(apps[0], listening, stop=asyncio.Event(), retire=retire))
    idle, busy = [await asyncio.open_connection(*address) for _ in range(2)]
    assert await ask(idle) == ("first", False)
    apps[0].go.clear()
    answer = asyncio.create_task(ask(busy))
    await until(lambda: apps[0].asked == 2)
    second = asyncio.create_task(web.serve(apps[1], door.dup(), stop=stop))
    retire.set()
    await until(lambda: listening.fileno() == -1)

    async def by_second() -> bool:
        connection = await asyncio.open_connection(*address)
        name, _ = await ask(connection)
        connection[1].close()
        await connection[1].wait_closed()
        return name == "second"

    apps[0].go.set()
    name, _ = await answer
    assert name == "first"
    assert [await by_second() for _ in range(20)] == [True] * 20
    assert await ask(idle) == ("first", True)
    assert await idle[0].read() == b""
    assert not first.done(), "the other connection may still be used"
    assert await ask(busy) == ("first", True)
    await asyncio.wait_for(first, 5)
    for _, writer in (idle, busy):
        writer.close()
        await writer.wait_closed()
    stop.set()
    await second
    door.close()


async def test_who_leaves_goes_on_and_asks_everybody_to_go():
    """Until the stop, who connects is served too; each connection ends with its next answer."""
    door = web.bind(host="127.0.0.1")
    address = door.getsockname()
    leave, stop = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(web.serve(Named("it"), door, stop=stop, leave=leave))
    kept = await asyncio.open_connection(*address)
    assert await ask(kept) == ("it", False)
    leave.set()
    assert await ask(kept) == ("it", True)
    assert await kept[0].read() == b""
    late = await asyncio.open_connection(*address)
    assert await ask(late) == ("it", True)
    assert not serving.done()
    stop.set()
    await serving
    for _, writer in (kept, late):
        writer.close()
        await writer.wait_closed()


async def test_a_gateway_that_is_told_to_leave_serves_meanwhile():
    """After SIGTERM no request fails for as long as --leave says: all are asked to go."""
    async with platform() as made, httpx.AsyncClient() as http:
        address = f"127.0.0.1:{free_port()}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "polyolo", "gateway", "--port", address.rpartition(":")[2]),
            *("--control", f"unix:{made.home}/control.sock", "--leave", "600"),
            env={**os.environ, "POLYOLO_GATEWAY_TOKEN": TOKEN},
        )
        try:
            async with asyncio.timeout(30):
                while True:
                    with suppress(httpx.TransportError):
                        if (await http.get(f"http://{address}/readyz")).is_success:
                            break
                    await asyncio.sleep(0.05)
                process.terminate()
                asked = ""
                while asked != "close":
                    answer = await http.post(
                        f"http://{address}/v1/detect", content=b"x", headers=bearer("a")
                    )
                    assert answer.is_success
                    asked = answer.headers.get("connection", "")
            assert (await http.get(f"http://{address}/readyz")).is_success
        finally:
            process.kill()
            await process.wait()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_new_grpc_connections_go_to_the_later_of_two():
    """Whichever is gone, the other one gets all; a port of nobody is told as such."""
    listeners = []

    def listen(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.setblocking(False)
        assert rpc.newest_first(listener.getsockname()[1])
        listeners.append(listener)
        return listener

    def accepted(by: socket.socket, port: int) -> int:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        number = 0
        try:
            while True:
                by.accept()[0].close()
                number += 1
        except BlockingIOError:
            return number
        finally:
            for client in clients:
                client.close()

    first = listen(0)
    port = first.getsockname()[1]
    assert accepted(first, port) == 20
    second = listen(port)
    assert accepted(second, port) == 20
    first.close()
    assert accepted(second, port) == 20
    third = listen(port)
    assert accepted(third, port) == 20
    third.close()
    assert accepted(second, port) == 20
    second.close()
    assert not rpc.newest_first(port)


async def test_gateways_behind_one_door_share_a_rate_as_one():
    """Each is waited for by itself, but two that follow each other are not two."""
    changes = Changes(5)
    polls = [
        asyncio.create_task(changes.newer(name, 5, -1, 30))
        for name in ("door.a", "door.b", "other.c", "")
    ]
    await until(lambda: changes.gateways() == 2)
    changes.publish(6)
    assert not changes.everywhere(6)
    assert await asyncio.gather(*polls) == [True] * 4
