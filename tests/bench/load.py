"""A closed-loop load generator that costs little: it shares the machine with what it measures.

Runs as a process of its own: `python -m tests.bench.load --target http://127.0.0.1:8700
--connections 8 --seconds 3 PICTURE...` prints one JSON object. Each connection sends its next
request when the last was answered. About 50 µs of CPU a request, a tenth of what a full client
library takes, so that the ratios speak of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """One connection: request, answer, next request, until the clock says stop."""

    def __init__(self, requests: list[bytes], start: int, until: float) -> None:
        self.requests, self.next, self.until = requests, start, until
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.latencies.append(now - self.sent)
        self.statuses[self.parser.get_status_code()] += 1
        if now < self.until:
            asyncio.get_running_loop().call_soon(self.send)  # not from inside the parser
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.statuses[0] += 1
        if not self.closed.done():
            self.closed.set_result(None)


def request(picture: bytes, path: str, key: str | None) -> bytes:
    """Return one whole POST as bytes."""
    credential = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: image/jpeg\r\n"
        f"{credential}content-length: {len(picture)}\r\n\r\n"
    )
    return head.encode() + picture


async def run(
    target: str, requests: list[bytes], connections: int, seconds: float
) -> dict[str, object]:
    """Load `target` (http://host:port or unix:/path) and return the figures."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    until = started + seconds
    protocols = [Connection(requests, i, until) for i in range(connections)]
    for protocol in protocols:
        if target.startswith("unix:"):
            await loop.create_unix_connection(lambda p=protocol: p, target[5:])
        else:
            url = urlsplit(target)
            await loop.create_connection(lambda p=protocol: p, url.hostname, url.port)
    await asyncio.wait_for(asyncio.gather(*(p.closed for p in protocols)), seconds + 30)
    elapsed = time.perf_counter() - started
    latencies = sorted(value for p in protocols for value in p.latencies)
    statuses: Counter[int] = sum((p.statuses for p in protocols), Counter())
    usage = resource.getrusage(resource.RUSAGE_SELF)

    def at(q: float) -> float:
        return round(latencies[min(len(latencies) - 1, int(q * len(latencies)))] * 1e3, 3)

    return {
        "rate": round(statuses[200] / elapsed, 2),
        "p50": at(0.50),
        "p99": at(0.99),
        "answers": dict(statuses),
        "client_cpu_ms": round((usage.ru_utime + usage.ru_stime) * 1e3 / max(1, len(latencies)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--path", default="/v1/detect")
    parser.add_argument("--key")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    requests = [request(path.read_bytes(), args.path, args.key) for path in args.pictures]
    figures = uvloop.run(run(args.target, requests, args.connections, args.seconds))
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
