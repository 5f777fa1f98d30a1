"""What a neighbour's flood costs: a victim at 30 % of its share beside an aggressor, as ratios.

    python -m tests.bench.neighbour [--seconds 10] [SCENARIO...]

One platform, two tenants (and ten, for the last line). The victim asks steadily at 30 % of half of
what the machine can do; alone first, then beside each kind of aggressor, then alone again. Printed
for each: the victim's success, its 99th percentile, what is allowed of it (1.5 times the one
alone, or that and one request of the aggressor, whichever is more), and what the aggressor got.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from polyolo.models import bundled, sample_boards
from tests.e2e.platform import SHARED, Platform

ROOT = Path(__file__).parents[2]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggressor:
    """A kind of flood."""

    kind: str
    """Of tests.bench.traffic."""
    pictures: str = ""
    """small, usual or large."""
    limit: float = 0.0
    """Requests a second that its plan allows; ten times as many are offered. 0: no rate."""
    connections: int = 64


SCENARIOS = {
    "cheap requests": Aggressor(kind="steady", pictures="small", limit=40.0, connections=200),
    "cheap requests, no rate": Aggressor(kind="busy", pictures="small", connections=100),
    "usual requests, no rate": Aggressor(kind="busy", pictures="usual", connections=100),
    "expensive images": Aggressor(kind="steady", pictures="large", limit=3.0, connections=100),
    "expensive images, no rate": Aggressor(kind="busy", pictures="large", connections=32),
    "slow bodies": Aggressor(kind="slow", connections=300),
    "held connections": Aggressor(kind="held", connections=500),
    "model uploads": Aggressor(kind="push", connections=4),
    "hot swaps": Aggressor(kind="swap"),
}


def traffic(kind: str, *arguments: object, calm: bool = False) -> subprocess.Popen[bytes]:
    """Start traffic. calm: the machine's other work goes first; it stands for other machines."""
    command = [sys.executable, "-m", "tests.bench.traffic", kind, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=(lambda: os.nice(5)) if calm else None,
    )


def outcome(process: subprocess.Popen[bytes]) -> Figures:
    out, _ = process.communicate()
    assert process.returncode == 0, "the traffic failed"
    return json.loads(out)


class Bench:
    """A platform with a victim and an aggressor."""

    def __init__(self, scratch: Path, seconds: float, model: Path) -> None:
        self.seconds = seconds
        self.model = model
        self.platform = Platform()
        self.scratch = scratch
        photos = sorted((SHARED / "photos").glob("*.jpg")) if (SHARED / "photos").exists() else []
        self.pictures = {
            "usual": photos or sample_boards(),
            "small": [self.picture("small", 64, 64)],
            "large": [self.picture("large", 4000, 3000)],
        }

    def picture(self, name: str, width: int, height: int) -> Path:
        """Return a JPEG of noise over a gradient: as many bytes as a photo of its size has."""
        chance = np.random.default_rng(1)
        slope = np.linspace(0, 255, width, dtype=np.float32)[None, :, None]
        noisy = slope + chance.normal(0, 12, (height, width, 3)).astype(np.float32)
        path = self.scratch / f"{name}.jpg"
        cv2.imwrite(str(path), np.clip(noisy, 0, 255).astype(np.uint8))
        return path

    def tenant(self, name: str) -> str:
        """Make a tenant that answers with the model; return its key."""
        made, client = self.platform.tenant(name)
        client.push_model("model", self.model)
        with self.platform.operator() as operator:
            operator.change_limits(name, {"min_replicas": 1, "max_models": 1000})
        client.detect(self.pictures["usual"][0])
        assert made.api_key is not None
        return made.api_key.key or ""

    def ask(self, key: str, *more: object, kind: str = "busy", pictures: str = "usual") -> Any:
        return traffic(
            kind, *self.pictures[pictures], "--url", self.platform.url, "--key", key, *more
        )

    def busy(
        self, key: str, connections: int, pictures: str = "usual", seconds: float = 3
    ) -> Figures:
        more = ("--connections", connections, "--seconds", seconds)
        return outcome(self.ask(key, *more, pictures=pictures))

    def victim(self, key: str, rate: float) -> Figures:
        more = ("--rate", rate, "--connections", 64, "--seconds", self.seconds)
        return outcome(self.ask(key, *more, kind="steady"))

    @contextmanager
    def attacked(self, key: str, how: Aggressor) -> Any:
        """Run the aggressor a second before, and as long as, the context lasts."""
        limits = {"requests_per_second": how.limit or None, "burst": None}
        with self.platform.operator() as operator:
            operator.change_limits("aggressor", limits)
        pictures = self.pictures[how.pictures] if how.pictures else []
        process = traffic(
            how.kind,
            *pictures,
            *("--url", self.platform.url, "--key", key, "--model", self.model),
            *("--rate", how.limit * 10 or 1, "--connections", how.connections),
            *("--seconds", self.seconds + 3),
            calm=True,
        )
        time.sleep(1.5)
        found: Figures = {}
        try:
            yield found
        finally:
            found.update(outcome(process))


def jain(counts: Sequence[float]) -> float:
    return sum(counts) ** 2 / (len(counts) * sum(x * x for x in counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of: {', '.join(SCENARIOS)}, equal tenants")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--up", nargs="*", default=[], help="more options of polyolo up")
    args = parser.parse_args()
    nano = SHARED / "models/yolox_nano.onnx"
    model = args.model or (nano if nano.exists() else bundled("pcb", 2))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        bench = Bench(Path(scratch), args.seconds, model)
        stack.callback(bench.platform.close)
        bench.platform.start(*args.up)
        run(bench, args.scenarios or [*SCENARIOS, "equal tenants"])


def run(bench: Bench, scenarios: Sequence[str]) -> None:
    """Measure, and print the table."""
    keys = {name: bench.tenant(name) for name in ("victim", "aggressor")}
    capacity = bench.busy(keys["victim"], 8)["rate"]
    rate = 0.3 * capacity / 2
    alone = [bench.victim(keys["victim"], rate)]
    table = Table(title=f"a victim at {rate:.1f} of {capacity:.0f} images/s, {bench.model.name}")
    for column in ("beside", "success", "p50 ms", "p99 ms", "of alone", "allowed ms", "aggressor"):
        table.add_column(column, justify="left" if column in ("beside", "aggressor") else "right")
    rows: list[tuple[str, Figures, float, Figures]] = []
    for name in scenarios:
        if name not in SCENARIOS:
            continue
        how = SCENARIOS[name]
        service = 0.0
        if how.pictures:
            service = bench.busy(keys["aggressor"], 1, how.pictures, 2)["p50"]
        with bench.attacked(keys["aggressor"], how) as said:
            found = bench.victim(keys["victim"], rate)
        rows.append((name, found, service, said))
        alone.append(bench.victim(keys["victim"], rate))
    quiet = statistics.median(one["p99"] for one in alone)
    table.add_row("nobody", *figures(alone[0], quiet), "", f"p99 of {[a['p99'] for a in alone]}")
    for name, found, service, said in rows:
        allowed = max(1.5 * quiet, quiet + service)
        table.add_row(name, *figures(found, quiet), f"{allowed:.0f}", brief(said))
    console = Console(width=140)
    console.print(table)
    if "equal tenants" in scenarios:
        console.print(equal(bench))


def figures(found: Figures, quiet: float) -> tuple[str, ...]:
    return (
        f"{found['success']:.2%}",
        f"{found['p50']:.1f}",
        f"{found['p99']:.1f}",
        f"{found['p99'] / quiet:.2f}",
    )


def brief(said: Figures) -> str:
    shown = {k: v for k, v in said.items() if k in ("rate", "answers", "opened", "done", "p50")}
    return json.dumps(shown or said)


def equal(bench: Bench) -> str:
    """Return Jain's index of what ten tenants got that asked without end, with different loads."""
    keys = [bench.tenant(f"equal-{number}") for number in range(10)]
    more: Callable[[int], tuple[object, ...]] = lambda n: (  # noqa: E731
        *("--connections", 4 + 2 * n, "--seconds", max(10.0, bench.seconds)),
    )
    running = [bench.ask(key, *more(number)) for number, key in enumerate(keys)]
    rates = [outcome(process)["rate"] for process in running]
    return (
        f"ten equal tenants, 4 to 22 connections: {rates} images/s, Jain's index {jain(rates):.4f}"
    )


if __name__ == "__main__":
    main()
