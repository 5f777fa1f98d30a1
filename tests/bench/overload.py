"""What overload costs: goodput at three times the capacity, how refusals come, how it recovers.

`python -m tests.bench.overload [--model FILE] PICTURE...` prints one JSON object. The capacity is
measured by a closed loop of 8 connections; then requests are sent at a fixed rate, three times
as many, whether or not they are answered; then the closed loop again, at once. A request that is
late because the generator was is counted as sent late. Everything shares the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httptools
import uvloop

from tests.bench.load import request, run
from tests.integration.runtime import SHARED, Runtime

_MOST_CONNECTIONS = 512  # the queue holds 128, and refusals come back at once


class Connection(asyncio.Protocol):
    """One connection of the open loop: carries a request when it is free."""

    def __init__(self, loop: OpenLoop) -> None:
        self.loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, data: bytes) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.retry_after = ""
        self.sent = time.perf_counter()
        self.transport.write(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = value.decode()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.loop.answered(self, self.parser.get_status_code(), time.perf_counter() - self.sent)


class OpenLoop:
    """Sends requests at a fixed rate, and counts what comes of them."""

    def __init__(self, socket: str, requests: Sequence[bytes]) -> None:
        self.socket = socket
        self.requests = requests
        self.free: list[Connection] = []
        self.busy = 0
        self.seconds: dict[int, list[float]] = {}
        self.waits: Counter[str] = Counter()
        self.unsent = 0

    async def run(self, rate: float, seconds: float) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        for _ in range(_MOST_CONNECTIONS):
            _, connection = await loop.create_unix_connection(lambda: Connection(self), self.socket)
            self.free.append(connection)
        begun = time.perf_counter()
        number = 0
        while (now := time.perf_counter() - begun) < seconds:
            while number < now * rate:
                if self.free:
                    self.busy += 1
                    self.free.pop().send(self.requests[number % len(self.requests)])
                else:
                    self.unsent += 1
                number += 1
            await asyncio.sleep(0.001)
        good = len(self.seconds.get(200, []))
        took = time.perf_counter() - begun
        while self.busy:  # the generator is to cost little while it measures
            await asyncio.sleep(0.01)
        for connection in self.free:
            connection.transport.close()
        return {
            "offered": round(number / took, 1),
            "goodput": round(good / took, 1),
            "answers": {status: len(found) for status, found in self.seconds.items()},
            "unsent": self.unsent,
            "refused_ms": _quantiles(self.seconds.get(503, [])),
            "answered_ms": _quantiles(self.seconds.get(200, [])),
            "retry_after": dict(self.waits),
        }

    def answered(self, connection: Connection, status: int, seconds: float) -> None:
        self.busy -= 1
        self.seconds.setdefault(status, []).append(seconds)
        if status == 503:
            self.waits[connection.retry_after] += 1
        self.free.append(connection)


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1e3, 2), "p99": round(cuts[98] * 1e3, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--model", type=Path, default=SHARED / "models/yolox_nano.onnx")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the three parts")
    parser.add_argument("--times", type=float, default=3.0, help="offered, in capacities")
    args = parser.parse_args()
    pictures = args.pictures or sorted((SHARED / "photos").glob("*.jpg"))
    requests = [request(path.read_bytes(), "/v1/detect", None) for path in pictures]
    runtime = Runtime()
    runtime.add("bench", args.model.read_bytes())
    try:
        runtime.start()
        target = f"unix:{runtime.socket}"
        uvloop.run(run(target, requests, 8, 1.0))  # warm
        before = uvloop.run(run(target, requests, 8, args.seconds))
        capacity = float(str(before["rate"]))
        over = uvloop.run(
            OpenLoop(str(runtime.socket), requests).run(args.times * capacity, args.seconds)
        )
        after = uvloop.run(run(target, requests, 8, args.seconds))
    finally:
        runtime.close()
    figures = {
        "capacity": capacity,
        "overload": over,
        "goodput_of_capacity": round(float(str(over["goodput"])) / capacity, 3),
        "recovered_of_capacity": round(float(str(after["rate"])) / capacity, 3),
        "after": after,
    }
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
