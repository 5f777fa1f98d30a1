"""What a hot swap costs the requests that run beside it: their p99 against the steady one.

`python -m tests.bench.swap [--model FILE] PICTURE...` prints one JSON object. Two versions of the
model, alike but for a comment, take turns; between two swaps as much time passes as a swap took,
so that steady and swapping requests are measured in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import uvloop

from tests.bench.load import Connection, request
from tests.integration.runtime import SHARED, Runtime


class Timed(Connection):
    """A connection that remembers when each of its requests was sent and answered."""

    times: list[tuple[float, float]]

    def on_message_complete(self) -> None:
        self.times.append((self.sent, time.perf_counter()))
        super().on_message_complete()


async def load(
    socket: str, requests: list[bytes], connections: int, stop: threading.Event
) -> Timed:
    """Keep connections busy until told to stop; return one that knows the times of all."""
    loop = asyncio.get_running_loop()
    times: list[tuple[float, float]] = []
    protocols = [Timed(requests, number, float("inf")) for number in range(connections)]
    for protocol in protocols:
        protocol.times = times
        await loop.create_unix_connection(lambda p=protocol: p, socket)
    while not stop.is_set():  # a thread sets it
        await asyncio.sleep(0.02)
    for protocol in protocols:
        protocol.until = 0.0
    await asyncio.gather(*(protocol.closed for protocol in protocols))
    for protocol in protocols[1:]:
        protocols[0].statuses.update(protocol.statuses)
    return protocols[0]


def quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"count": len(seconds), "p50": round(cuts[49] * 1e3, 2), "p99": round(cuts[98] * 1e3, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--model", type=Path, default=SHARED / "models/yolox_nano.onnx")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--swaps", type=int, default=20)
    args = parser.parse_args()
    pictures = args.pictures or sorted((SHARED / "photos").glob("*.jpg"))
    requests = [request(path.read_bytes(), "/v1/detect", None) for path in pictures]
    data = args.model.read_bytes()
    runtime = Runtime()
    # Field 6 of an ONNX file is its comment; appended, it makes other bytes of the same model.
    runtime.add("bench", data, data + b"\x32\x01b")
    stop = threading.Event()
    done: list[Timed] = []
    try:
        runtime.start()
        thread = threading.Thread(
            target=lambda: done.append(
                uvloop.run(load(str(runtime.socket), requests, args.connections, stop))
            )
        )
        thread.start()
        time.sleep(1.0)
        swaps = []
        for number in range(args.swaps):
            begun = time.perf_counter()
            runtime.models[0]["current"] = 2 - number % 2
            runtime.put_in_force()
            swaps.append((begun, time.perf_counter()))
            time.sleep(max(0.5, swaps[-1][1] - begun))
        stop.set()
        thread.join()
    finally:
        runtime.close()
    first = swaps[0][0]
    # An old version closes behind its swap: 0.1 s more belong to it.
    within = [(begun, over + 0.1) for begun, over in swaps]
    beside, steady = [], []
    for sent, had in done[0].times:
        if any(sent < over and had > begun for begun, over in within):
            beside.append(had - sent)
        elif sent > first - 0.8:
            steady.append(had - sent)
    figures = {
        "steady_ms": quantiles(steady),
        "during_swaps_ms": quantiles(beside),
        "p99_ratio": round(quantiles(beside)["p99"] / quantiles(steady)["p99"], 2),
        "swap_s": round(statistics.median(over - begun for begun, over in swaps), 3),
        "answers": dict(done[0].statuses),
    }
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
