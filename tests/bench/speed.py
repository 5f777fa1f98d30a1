"""What the server costs: images/s and latency against the limit, as ratios taken in one run.

`make bench` prints, for one model: the pipeline in one process without a server (the limit),
direct to a runtime on its Unix socket, and through the gateway, at 1, 8 and 32 connections.
The rounds take turns, so that a drift of the machine's speed falls on all alike; the medians of
the rounds are printed. Everything shares the machine, the load generator too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as host
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polyolo.models import bundled, sample_boards
from tests.e2e.platform import SHARED, Platform

ROOT = Path(__file__).parents[2]
CONNECTIONS = (1, 8, 32)


def measure(module: str, *arguments: object) -> dict[str, float]:
    """Run one measuring process and return its figures."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="an ONNX file; else YOLOX-Nano, else pcb:2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    args = parser.parse_args()
    nano = SHARED / "models/yolox_nano.onnx"
    model = args.model or (nano if nano.exists() else bundled("pcb", 2))
    pictures = sorted((SHARED / "photos").glob("*.jpg")) if model == nano else sample_boards()
    cpus = len(os.sched_getaffinity(0))

    platform = Platform()
    try:
        platform.start()
        tenant, client = platform.tenant("bench")
        with client:
            client.push_model("bench", model)
            for picture in pictures:
                client.detect(picture)  # warm, and every answer is good
        socket = platform.home / "run" / tenant.id / "runtime.sock"
        doors = {
            "direct": ["--target", f"unix:{socket}"],
            "gateway": ["--target", platform.url, "--key", client.api_key],
        }
        results: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        for _ in range(args.rounds):
            limit = ["--threads", cpus, "--seconds", args.seconds]
            results["limit", cpus].append(measure("limit", model, *pictures, *limit))
            for connections in CONNECTIONS:
                for door, target in doors.items():
                    options = ["--connections", connections, "--seconds", args.seconds]
                    results[door, connections].append(measure("load", *pictures, *target, *options))
        report(results, model, cpus)
    finally:
        platform.close()


def report(results: dict[tuple[str, int], list[dict[str, float]]], model: Path, cpus: int) -> None:
    """Print the table, and what the gateway adds."""
    limits = results["limit", cpus]
    table = Table(title=f"{model.name} on {processor()}, {cpus} CPUs")
    for column in ("where", "connections", "images/s", "p50 ms", "p99 ms", "of the limit"):
        table.add_column(column, justify="left" if column == "where" else "right")
    middle = {
        key: {name: statistics.median(r[name] for r in rounds) for name in ("rate", "p50", "p99")}
        for key, rounds in results.items()
    }
    for (where, connections), figures in middle.items():
        ratios = [
            mine["rate"] / limit["rate"]
            for mine, limit in zip(results[where, connections], limits, strict=True)
        ]
        table.add_row(
            where,
            f"{connections} threads" if where == "limit" else str(connections),
            f"{figures['rate']:.1f}",
            f"{figures['p50']:.2f}",
            f"{figures['p99']:.2f}",
            f"{statistics.median(ratios):.3f}",
        )
    console = Console()
    console.print(table)
    added = [
        through["p50"] - direct["p50"]
        for through, direct in zip(results["gateway", 1], results["direct", 1], strict=True)
    ]
    console.print(
        f"the gateway adds {statistics.median(added):.2f} ms at the median (1 connection)"
    )


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return host.machine()


if __name__ == "__main__":
    main()
