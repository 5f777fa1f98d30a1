"""What the server costs: images/s and latency against the limit, as ratios taken in one run.

`make bench` prints, for one model: the pipeline in one process without a server (the limit),
direct to a runtime on its Unix socket, through the gateway, and a plain FastAPI server for
comparison, at 1, 8, 32 and 128 connections. The rounds take turns, so that a drift of the
machine's speed falls on all alike; the medians of the rounds are printed. Everything shares the
machine, the load generator too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as host
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polyolo.models import bundled, sample_boards
from tests.bench.graphs import yolov8n
from tests.e2e.platform import SHARED, Platform, eventually

ROOT = Path(__file__).parents[2]
Figures = dict[str, float]

LIMITS = (("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
"""Engines and arithmetics to measure without a server; the first is what the ratios refer to."""


def measure(module: str, *arguments: object) -> Figures:
    """Run one measuring process and return its figures."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@contextmanager
def plain_server(model: Path, socket: Path) -> Iterator[None]:
    """Run the server that people write first."""
    command = [sys.executable, "-m", "tests.bench.plain_server", model, socket]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        eventually(socket.exists, within=20, what="the plain server listens")
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        help="an ONNX file, or yolov8n for a graph of its size; else YOLOX-Nano, else pcb:2",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    """Measure one model and print the table. scratch: a directory for what is generated."""
    nano = SHARED / "models/yolox_nano.onnx"
    model = args.model or (nano if nano.exists() else bundled("pcb", 2))
    if model == Path("yolov8n"):  # random weights: right for timing, nothing to be found
        model = scratch / "yolov8n-sized.onnx"
        model.write_bytes(yolov8n(seed=0))
    photos = sorted((SHARED / "photos").glob("*.jpg"))
    pictures = photos if photos and model != bundled("pcb", 2) else sample_boards()
    cpus = len(os.sched_getaffinity(0))
    results: dict[tuple[str, int], list[Figures]] = defaultdict(list)

    platform = Platform()
    try:
        platform.start()
        tenant, client = platform.tenant("bench")
        with client:
            client.push_model("bench", model)
            for picture in pictures:
                client.detect(picture)  # warm, and every answer is good
        plain = platform.home / "plain.sock"
        doors = {
            "direct": ["--target", f"unix:{platform.home}/run/{tenant.id}/io/runtime.sock"],
            "gateway": ["--target", platform.url, "--key", client.api_key],
            "plain FastAPI": ["--target", f"unix:{plain}"],
        }
        with plain_server(model, plain):
            for _ in range(args.rounds):
                limit = ["--threads", cpus, "--seconds", args.seconds]
                for engine, arithmetic in LIMITS:
                    how = ["--engine", engine, "--arithmetic", arithmetic]
                    figures = measure("limit", model, *pictures, *limit, *how)
                    results[f"limit: {engine} {arithmetic}", cpus].append(figures)
                for connections in args.connections:
                    options = ["--connections", connections, "--seconds", args.seconds]
                    for door, target in doors.items():
                        figures = measure("load", *pictures, *target, *options)
                        results[door, connections].append(figures)
    finally:
        platform.close()
    report(results, model, cpus)


def report(results: dict[tuple[str, int], list[Figures]], model: Path, cpus: int) -> None:
    """Print the table, and what the gateway adds."""
    limits = results[f"limit: {' '.join(LIMITS[0])}", cpus]
    table = Table(title=f"{model.name} on {processor()}, {cpus} CPUs")
    for column in ("where", "connections", "images/s", "p50 ms", "p99 ms", "of the limit"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for (where, connections), rounds in results.items():
        rate, p50, p99 = (
            statistics.median(figures[name] for figures in rounds)
            for name in ("rate", "p50", "p99")
        )
        ratio = statistics.median(
            mine["rate"] / limit["rate"] for mine, limit in zip(rounds, limits, strict=True)
        )
        at = f"{connections} threads" if where.startswith("limit") else str(connections)
        table.add_row(where, at, f"{rate:.1f}", f"{p50:.2f}", f"{p99:.2f}", f"{ratio:.3f}")
    console = Console(width=100)
    console.print(table)
    least = min(connections for where, connections in results if where == "gateway")
    added = [
        through["p50"] - direct["p50"]
        for through, direct in zip(results["gateway", least], results["direct", least], strict=True)
    ]
    console.print(
        f"the gateway adds {statistics.median(added):.2f} ms at the median ({least} connection)"
    )


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return host.machine()


if __name__ == "__main__":
    main()
