"""What a thousand tenants cost of which twenty are active: memory, start-up, CPU, first answers.

`python -m tests.bench.density [--tenants 1000] [--active 20]` runs `polyolo up` and prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from polyolo.models import sample_boards
from tests.e2e.platform import Platform

_TICKS = os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Return the MB that a process has for itself, and its part of what it shares (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def seconds_of_cpu(pid: int) -> float:
    """Return the processor time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children(pid: int, *, named: str = "") -> list[int]:
    """Return the processes that a process has started, those with a word in their command line."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
            if named in command:
                found.append(int(child))
    return found


class Fleet:
    """The platform with its tenants."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.keys: dict[str, str] = {}
        self.picture = sample_boards()[0].read_bytes()
        self.http = httpx.Client(
            base_url=platform.url, limits=httpx.Limits(max_connections=8), timeout=60
        )

    def create(self, name: str) -> None:
        headers = {"authorization": f"Bearer {self.platform.operator_key}"}
        answer = self.http.post("/api/v1/tenants", json={"name": name}, headers=headers)
        assert answer.status_code == 201, answer.text
        self.keys[name] = answer.json()["api_key"]["key"]

    def detect(self, name: str) -> float:
        """Return the seconds until a tenant has its answer."""
        headers = {"authorization": f"Bearer {self.keys[name]}"}
        started = time.perf_counter()
        answer = self.http.post("/v1/detect", content=self.picture, headers=headers)
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - started

    def start(self) -> float:
        """Start the platform and return the seconds until it is ready."""
        started = time.perf_counter()
        self.platform.start()
        return round(time.perf_counter() - started, 2)

    def runtimes(self) -> int:
        """Return how many tenants have a process."""
        return len({path.name.split("~")[0] for path in self.platform.home.glob("run/t_*")})

    @property
    def control(self) -> int:
        assert self.platform.process is not None
        return self.platform.process.pid

    @property
    def gateway(self) -> int:
        return children(self.control, named="polyolo.gateway")[0]

    def memory(self) -> dict[str, int]:
        """Return the MB of control and of the gateway."""
        return {"control": round(memory(self.control)), "gateway": round(memory(self.gateway))}

    def busy(self, seconds: float) -> dict[str, float]:
        """Return the percentages of one CPU that both take during the next seconds."""
        both = {"control": self.control, "gateway": self.gateway}
        before = {name: seconds_of_cpu(pid) for name, pid in both.items()}
        time.sleep(seconds)
        return {
            name: round((seconds_of_cpu(pid) - before[name]) / seconds * 100, 2)
            for name, pid in both.items()
        }


def measured(fleet: Fleet, active: int, idle_s: float) -> dict[str, object]:
    """Return the figures of a platform whose tenants are all there."""
    figures: dict[str, object] = {}
    platform = fleet.platform
    platform.stop()
    figures["start_up_s"] = fleet.start()
    figures["runtimes_after_start"] = fleet.runtimes()
    time.sleep(5)
    figures["idle_cpu_percent"] = fleet.busy(idle_s)
    figures["idle_mb"] = fleet.memory()
    chosen = random.Random(0).sample(sorted(fleet.keys), active)
    first = [fleet.detect(name) for name in chosen]
    again = [fleet.detect(name) for name in chosen for _ in range(5)]
    figures["first_answers_ms"] = [round(1e3 * seconds) for seconds in first]
    figures["answers_ms_p50"] = round(1e3 * statistics.median(again), 1)
    figures["runtimes_of_the_active"] = fleet.runtimes()
    figures["active_mb"] = fleet.memory()
    figures["cpu_percent_with_the_active_awake"] = fleet.busy(idle_s)
    started = time.perf_counter()
    fleet.create("newcomer")
    fleet.detect("newcomer")
    figures["create_and_detect_s"] = round(time.perf_counter() - started, 3)
    os.kill(fleet.control, signal.SIGKILL)
    assert platform.process is not None
    platform.process.wait()
    started = time.perf_counter()
    figures["start_up_after_kill_9_s"] = fleet.start()
    fleet.detect(chosen[0])
    figures["kill_9_to_first_answer_s"] = round(time.perf_counter() - started, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--active", type=int, default=20)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch an idle one")
    args = parser.parse_args()
    platform = Platform()
    try:
        fleet = Fleet(platform)
        fleet.start()
        started = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fleet.create, (f"tenant-{number}" for number in range(args.tenants))))
        rate = args.tenants / (time.perf_counter() - started)
        figures = {"created_a_second": round(rate, 1), "runtimes_after_creation": fleet.runtimes()}
        print(json.dumps(figures | measured(fleet, args.active, args.idle)))
    finally:
        platform.close()


if __name__ == "__main__":
    main()
