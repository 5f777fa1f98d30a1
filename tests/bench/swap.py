"""What hot swaps cost: requests beside them, a neighbour's requests, and memory after many.

`python -m tests.bench.swap [--model FILE] PICTURE...` prints one JSON object. Two versions of the
model, alike but for a comment, take turns; between two swaps as much time passes as a swap took,
so that steady and swapping requests are measured in one run, on one runtime. The neighbour is
another tenant of a whole platform, at 30 % of its share: alone and beside loads, which follow each
other without a pause, in turns.
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

from polyolo.serving.memory import own
from tests.bench.load import Connection, request
from tests.bench.neighbour import SCENARIOS, bench
from tests.integration.runtime import SHARED, Runtime, eventually, picture, yolov8


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


class Load:
    """Requests to a runtime in a thread of their own, from `start` until `stop`."""

    def __init__(self, runtime: Runtime, requests: list[bytes], connections: int) -> None:
        self._stop = threading.Event()
        self._done: list[Timed] = []
        self._thread = threading.Thread(
            target=lambda: self._done.append(
                uvloop.run(load(str(runtime.socket), requests, connections, self._stop))
            )
        )
        self._thread.start()

    def stop(self) -> Timed:
        self._stop.set()
        self._thread.join()
        return self._done[0]


def swap(runtime: Runtime, count: int) -> list[tuple[float, float]]:
    """Swap so often, with pauses; return when each was asked for and in force."""
    swaps = []
    for number in range(count):
        begun = time.perf_counter()
        runtime.models[0]["current"] = 2 - number % 2
        runtime.put_in_force()
        swaps.append((begun, time.perf_counter()))
        time.sleep(max(0.5, swaps[-1][1] - begun))
    return swaps


def split(seen: Timed, swaps: list[tuple[float, float]]) -> dict[str, object]:
    """Return how long requests took beside swaps and between them."""
    first = swaps[0][0]
    # An old version closes behind its swap: 0.1 s more belong to it.
    within = [(begun, over + 0.1) for begun, over in swaps]
    beside, steady = [], []
    for sent, had in seen.times:
        if any(sent < over and had > begun for begun, over in within):
            beside.append(had - sent)
        elif sent > first - 0.8:
            steady.append(had - sent)
    return {
        "steady_ms": quantiles(steady),
        "during_swaps_ms": quantiles(beside),
        "p99_ratio": round(quantiles(beside)["p99"] / quantiles(steady)["p99"], 2),
        "swap_s": round(statistics.median(over - begun for begun, over in swaps), 3),
        "answers": dict(seen.statuses),
    }


def neighbour(model: Path, seconds: float) -> dict[str, object]:
    """Return how a tenant fares alone and beside another's loads, in turns."""
    with bench(seconds, model) as made:
        steady, beside = [], []
        for _ in range(2):
            steady.append(made.victim())
            with made.attacked(SCENARIOS["hot swaps"]) as said:
                beside.append(made.victim())
        steady.append(made.victim())
    usual = statistics.median(one["p99"] for one in steady)
    loaded = statistics.median(one["p99"] for one in beside)
    return {
        "steady_p99_ms": [one["p99"] for one in steady],
        "beside_loads_p99_ms": [one["p99"] for one in beside],
        "p99_ratio": round(loaded / usual, 2),
        "p50_ratio": round(beside[0]["p50"] / steady[0]["p50"], 2),
        "success": min(one["success"] for one in beside),
        "loads": said["done"],
    }


def memory_after(swaps: int) -> dict[str, float]:
    """Return what a runtime takes after a tenth of so many swaps, and after all of them."""
    runtime = Runtime()
    runtime.add("bench", *(yolov8(best=best) for best in (0.9, 0.8)))
    sizes = {}
    try:
        runtime.start()
        for number in range(1, swaps + 1):
            runtime.models[0]["current"] = number % 2 + 1
            runtime.put_in_force()
            runtime.detect(picture())
            if number in (swaps // 10, swaps):
                eventually(lambda: len(runtime.workers()) == 1)
                assert runtime.process is not None
                sizes[number] = sum(map(own, (runtime.process.pid, *runtime.workers()))) / 2**20
    finally:
        runtime.close()
    first, last = sizes.values()
    return {
        "first_mib": round(first, 1),
        "last_mib": round(last, 1),
        "ratio": round(last / first, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--model", type=Path, default=SHARED / "models/yolox_nano.onnx")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a neighbour's; 0: none")
    parser.add_argument("--many", type=int, default=500)
    args = parser.parse_args()
    pictures = args.pictures or sorted((SHARED / "photos").glob("*.jpg"))
    requests = [request(path.read_bytes(), "/v1/detect", None) for path in pictures]
    data = args.model.read_bytes()
    figures: dict[str, object] = {}
    runtime = Runtime()
    # Field 6 of an ONNX file is its comment; appended, it makes other bytes of the same model.
    runtime.add("bench", data, data + b"\x32\x01b")
    try:
        runtime.start()
        own = Load(runtime, requests, args.connections)
        time.sleep(1.0)
        swaps = swap(runtime, args.swaps)
        figures = split(own.stop(), swaps)
    finally:
        runtime.close()
    if args.seconds:
        figures["neighbour"] = neighbour(args.model, args.seconds)
    if args.many:
        figures[f"memory_after_{args.many}_swaps"] = memory_after(args.many)
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
