"""What a neighbour's flood costs: a victim at 30 % of its share beside an aggressor, as ratios.

    python -m tests.bench.neighbour [--seconds 15] [SCENARIO...]

One platform, two tenants (and ten, for the last line). The victim asks steadily at 30 % of half of
what the machine can do: alone, then beside each kind of aggressor, then alone again. Printed for
each: the victim's success, its 99th percentile, what is allowed of it (1.5 times the one alone, or
that and one request of the aggressor, whichever is more), and what the aggressor got.

Everything shares the machine. So the victim's generator runs before all else (as root), or it
would measure its own wait for a CPU, and the aggressor's after all else: both stand for machines
elsewhere.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    "expensive images": Aggressor(kind="steady", pictures="large", limit=3.0, connections=100),
    "slow bodies": Aggressor(kind="slow", connections=300),
    "held connections": Aggressor(kind="held", connections=500),
    "model uploads": Aggressor(kind="push", connections=4),
    "hot swaps": Aggressor(kind="swap"),
    "cheap, no limit": Aggressor(kind="busy", pictures="small", connections=100),
    "expensive, no limit": Aggressor(kind="busy", pictures="large", connections=32),
}


def traffic(kind: str, *arguments: object, calm: bool = False) -> subprocess.Popen[bytes]:
    """Start traffic. calm: the machine's other work goes first; it stands for other machines."""
    command = [sys.executable, "-m", "tests.bench.traffic", kind, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=_after_all_else if calm else None,
    )


def _after_all_else() -> None:
    os.setsid()  # where each session has its share, as on a desktop, this one gets a small one
    os.nice(10)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def outcome(process: subprocess.Popen[bytes]) -> Figures:
    out, _ = process.communicate()
    assert process.returncode == 0, "the traffic failed"
    return json.loads(out)


class Bench:
    """A platform with a victim and an aggressor."""

    def __init__(self, scratch: Path, seconds: float, model: Path | None = None) -> None:
        nano = SHARED / "models/yolox_nano.onnx"
        self.model = model or (nano if nano.exists() else bundled("pcb", 2))
        self.seconds = seconds
        self.platform = Platform()
        self.scratch = scratch
        photos = sorted((SHARED / "photos").glob("*.jpg")) if (SHARED / "photos").exists() else []
        self.pictures = {
            "usual": photos or sample_boards(),
            "small": [self.picture("small", 64, 64)],
            "large": [self.picture("large", 4000, 3000)],
        }
        self.keys: dict[str, str] = {}
        self.capacity = 0.0
        """Pictures a second, of the whole machine."""

    def start(self, *options: str) -> None:
        """Start the platform, and find out what the machine can do."""
        self.platform.start(*options)
        for name in ("victim", "aggressor"):
            self.keys[name] = self.tenant(name)
        # The better of two: at first, processes are still being started that are kept ready.
        self.capacity = max(self.busy("victim", 8, seconds=5)["rate"] for _ in range(2))

    @property
    def rate(self) -> float:
        """Return the victim's requests a second."""
        return 0.3 * self.capacity / 2

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
        self, who: str, connections: int, pictures: str = "usual", seconds: float = 3
    ) -> Figures:
        more = ("--connections", connections, "--seconds", seconds)
        return outcome(self.ask(self.keys[who], *more, pictures=pictures))

    def victim(self) -> Figures:
        """Have the victim ask, and return how it fared."""
        more = ("--rate", self.rate, "--connections", 64, "--seconds", self.seconds, "--hurry")
        return outcome(self.ask(self.keys["victim"], *more, kind="steady"))

    @contextmanager
    def attacked(self, how: Aggressor) -> Iterator[Figures]:
        """Run the aggressor from a second before, and for as long as, the context lasts."""
        limits = {"requests_per_second": how.limit or None, "burst": None}
        with self.platform.operator() as operator:
            operator.change_limits("aggressor", limits)
        pictures = self.pictures[how.pictures] if how.pictures else []
        process = traffic(
            how.kind,
            *pictures,
            *("--url", self.platform.url, "--key", self.keys["aggressor"], "--model", self.model),
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

    def service_ms(self, how: Aggressor) -> float:
        """Return what one request of an aggressor takes by itself; 0 where it is not asking."""
        return self.busy("aggressor", 1, how.pictures, 2)["p50"] if how.pictures else 0.0

    def equal(self) -> str:
        """Return Jain's index of what ten tenants got that asked without end, each with another
        number of connections."""
        keys = [self.tenant(f"equal-{number}") for number in range(10)]
        running = [
            self.ask(key, "--connections", 4 + 2 * number, "--seconds", self.seconds)
            for number, key in enumerate(keys)
        ]
        rates = [outcome(process)["rate"] for process in running]
        return f"ten equal tenants: {rates} images/s, Jain's index {jain(rates):.4f}"


def jain(counts: Sequence[float]) -> float:
    return sum(counts) ** 2 / (len(counts) * sum(x * x for x in counts))


@contextmanager
def bench(seconds: float, model: Path | None = None, *options: str) -> Iterator[Bench]:
    """Run a platform with a victim and an aggressor while the context lasts."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        made = Bench(Path(scratch), seconds, model)
        stack.callback(made.platform.close)
        made.start(*options)
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of: {', '.join(SCENARIOS)}, equal tenants")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--up", nargs="*", default=[], help="more options of polyolo up")
    args = parser.parse_args()
    with bench(args.seconds, args.model, *args.up) as made:
        run(made, args.scenarios or [*SCENARIOS, "equal tenants"])


def run(made: Bench, scenarios: Sequence[str]) -> None:
    """Measure, and print the table."""
    chosen = [name for name in scenarios if name in SCENARIOS]
    alone = [made.victim()]
    rows: list[tuple[str, Figures, float, Figures]] = []
    for number, name in enumerate(chosen, start=1):
        how = SCENARIOS[name]
        service = made.service_ms(how)
        with made.attacked(how) as said:
            found = made.victim()
        rows.append((name, found, service, said))
        if number in (len(chosen) // 2, len(chosen)):
            alone.append(made.victim())
    quiet = statistics.median(one["p99"] for one in alone)
    table = Table(
        title=f"a victim at {made.rate:.1f} of {made.capacity:.0f} images/s, {made.model.name}"
    )
    for column in ("beside", "success", "p50 ms", "p99 ms", "of alone", "allowed ms", "aggressor"):
        table.add_column(column, justify="left" if column in ("beside", "aggressor") else "right")
    for one in alone:
        table.add_row("nobody", *figures(one, quiet), "", "")
    for name, found, service, said in rows:
        allowed = max(1.5 * quiet, quiet + service)
        table.add_row(name, *figures(found, quiet), f"{allowed:.0f}", brief(said))
    console = Console(width=140)
    console.print(table)
    if "equal tenants" in scenarios:
        console.print(made.equal())


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


if __name__ == "__main__":
    main()
