"""One kind of traffic against a gateway, as a process of its own that prints what came of it.

    python -m tests.bench.traffic KIND --url http://127.0.0.1:8700 --key pk_... [PICTURE...]

steady: requests at a fixed rate, whether or not they are answered; times count from when a request
was due. busy: connections that send the next request when the last was answered. slow: bodies that
trickle. held: connections that ask nothing. push: models uploaded in a loop. swap: two versions of
a model put in use in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop

from polyolo.client import Client
from polyolo.errors import PolyoloError
from tests.bench.load import request, run

Figures = dict[str, object]


class Pooled(asyncio.Protocol):
    """One connection of a steady stream: carries a request when it is free."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.due = 0.0
        self.which = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, which: int, due: float) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.due, self.which = due, which
        self.transport.write(self.stream.requests[which])

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        self.stream.done(self, status, reusable=self.parser.should_keep_alive())

    def connection_lost(self, error: Exception | None) -> None:
        if self.due:
            self.stream.done(self, 0, reusable=False)
        elif self in self.stream.free:
            self.stream.free.remove(self)
            self.stream.made -= 1


class Stream:
    """Sends requests at a fixed rate. A request for which no connection is free waits for one."""

    def __init__(self, url: str, requests: Sequence[bytes], connections: int) -> None:
        self.url = urlsplit(url)
        self.requests = requests
        self.most = connections
        self.made = 0
        self.free: list[Pooled] = []
        self.waiting: deque[float] = deque()
        self.sent = 0
        self.times: list[tuple[float, int]] = []
        self.good: Counter[int] = Counter()
        """How often each of the requests was answered 200."""
        self.last = 0.0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, rate: float, seconds: float, at: float = 0.0) -> Figures:
        """Send for so many seconds, from `at` on the machine's clock; return what came of it."""
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        begun = time.perf_counter()
        number = 0
        while (now := time.perf_counter() - begun) < seconds:
            while number <= now * rate:
                self.waiting.append(begun + number / rate)
                number += 1
            self._send()
            due = begun + number / rate
            await asyncio.sleep(min(max(0.001, due - time.perf_counter()), 0.05))
        last = time.perf_counter() + 10
        while len(self.times) < number and time.perf_counter() < last:
            self._send()
            await asyncio.sleep(0.005)
        for connection in self.free:
            connection.due = 0.0
            connection.transport.close()
        found = figures(self.times, number, number - len(self.times), seconds)
        return found | {"begun": begun, "last": self.last, "good": dict(self.good)}

    def _send(self) -> None:
        while self.waiting and (self.free or self.made < self.most):
            due = self.waiting.popleft()
            which = self.sent % len(self.requests)
            self.sent += 1
            if self.free:
                self.free.pop().send(which, due)
                continue
            self.made += 1
            task = asyncio.create_task(self._open(which, due))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _open(self, which: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(
                lambda: Pooled(self), self.url.hostname, self.url.port
            )
        except OSError:
            self.made -= 1
            self.times.append((time.perf_counter() - due, 0))
        else:
            made.send(which, due)

    def done(self, connection: Pooled, status: int, *, reusable: bool) -> None:
        self.times.append((time.perf_counter() - connection.due, status))
        self.good[connection.which] += status == 200
        self.last = time.perf_counter()
        connection.due = 0.0
        if reusable:
            self.free.append(connection)
        else:
            self.made -= 1
            connection.transport.close()


def hurry() -> bool:
    """Run before all else on this machine, so that what is measured is not the generator's own
    wait for a CPU; say whether that may be."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:  # neither root nor allowed to
        return False
    return True


def figures(times: list[tuple[float, int]], offered: int, lost: int, seconds: float) -> Figures:
    """Return what came of requests. times: seconds and status of each that was answered."""
    good = sorted(took for took, status in times if status == 200)

    def at(q: float) -> float:
        return round(good[min(len(good) - 1, int(q * len(good)))] * 1e3, 2) if good else 0.0

    return {
        "offered": offered,
        "rate": round(len(good) / seconds, 2),
        "success": round(len(good) / max(1, offered), 5),
        "p50": at(0.5),
        "p99": at(0.99),
        "answers": dict(Counter(status for _, status in times)),
        "unanswered": lost,
    }


async def slow(url: str, key: str, connections: int, seconds: float) -> Figures:
    """Trickle bodies, a few bytes ten times a second; begin anew where one is closed."""
    place = urlsplit(url)
    begun = time.perf_counter()
    opened = 0

    async def trickle() -> None:
        nonlocal opened
        while time.perf_counter() - begun < seconds:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(place.hostname, place.port)
                opened += 1
                writer.write(request(bytes(1_000_000), "/v1/detect", key)[:600])
                with suppress(OSError):
                    while time.perf_counter() - begun < seconds and not writer.is_closing():
                        writer.write(b"12345678")
                        await writer.drain()
                        await asyncio.sleep(0.1)
                writer.close()
            await asyncio.sleep(0.02)

    await asyncio.gather(*(trickle() for _ in range(connections)))
    return {"connections": connections, "opened": opened}


async def held(url: str, key: str, connections: int, seconds: float) -> Figures:
    """Hold connections: silent ones, half heads, and such that asked once."""
    place = urlsplit(url)
    begun = time.perf_counter()
    says = (
        b"",
        b"POST /v1/detect HTTP/1.1\r\nhost: x\r\n",
        request(b"no picture", "/v1/detect", key),
    )
    opened = 0

    async def hold(number: int) -> None:
        nonlocal opened
        while time.perf_counter() - begun < seconds:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
                opened += 1
                writer.write(says[number % len(says)])
                with suppress(TimeoutError, OSError):
                    async with asyncio.timeout(seconds - (time.perf_counter() - begun)):
                        while await reader.read(65536):
                            pass
                writer.close()
            await asyncio.sleep(0.02)

    await asyncio.gather(*(hold(number) for number in range(connections)))
    return {"connections": connections, "opened": opened}


def again(connections: int, seconds: float, work: object) -> Figures:
    """Do some work in threads, over and over; what fails is counted and goes on."""
    until = time.perf_counter() + seconds
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def loop(number: int) -> None:
        while time.perf_counter() < until:
            try:
                work(number)  # type: ignore[operator]
                said = "done"
            except PolyoloError as error:
                said = error.code
                time.sleep(0.01)
            with lock:
                counts[said] += 1

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(loop, range(connections)))
    return dict(counts)


def push(url: str, key: str, model: Path, connections: int, seconds: float) -> Figures:
    """Upload a model over and over, and delete it."""
    with Client(url, key, retries=0) as client:

        def work(number: int) -> None:
            client.push_model(f"pushed-{number}", model)
            client.delete_model(f"pushed-{number}")

        return again(connections, seconds, work)


def swap(url: str, key: str, model: Path, seconds: float) -> Figures:
    """Put two versions of a model in use in turns, each as soon as the other one is."""
    with Client(url, key, retries=0) as client, tempfile.TemporaryDirectory() as scratch:
        # Field 6 of an ONNX file is its comment; appended, it makes other bytes of the same model.
        other = Path(scratch, "other.onnx")
        other.write_bytes(model.read_bytes() + b"\x32\x01b")
        versions = [client.push_model("swapped", file).version for file in (model, other)]
        turns = iter(range(10**9))
        return again(1, seconds, lambda _: client.use_model("swapped", versions[next(turns) % 2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("steady", "busy", "slow", "held", "push", "swap")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", action="append", help="several: each request with the next one")
    parser.add_argument("--rate", type=float, default=10.0, help="of steady, a second")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--model", type=Path, help="of push and swap")
    parser.add_argument("--at", type=float, default=0.0, help="begin at this perf_counter, steady")
    parser.add_argument("--hurry", action="store_true", help="run before all else on this machine")
    args = parser.parse_args()
    if args.hurry:
        hurry()
    pictures = [path.read_bytes() for path in args.pictures]
    requests = [request(one, "/v1/detect", key) for key in args.key for one in pictures]
    many, seconds, args.key = args.connections, args.seconds, args.key[0]
    if args.kind == "steady":
        found = uvloop.run(Stream(args.url, requests, many).run(args.rate, seconds, args.at))
    elif args.kind == "busy":
        found = uvloop.run(run(args.url, requests, many, seconds))
    elif args.kind == "slow":
        found = uvloop.run(slow(args.url, args.key, many, seconds))
    elif args.kind == "held":
        found = uvloop.run(held(args.url, args.key, many, seconds))
    elif args.kind == "push":
        found = push(args.url, args.key, args.model, min(many, 4), seconds)
    else:
        found = swap(args.url, args.key, args.model, seconds)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
