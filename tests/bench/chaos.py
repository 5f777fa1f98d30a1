"""kill -9 at random, under load: runtimes, models' processes, the gateway, the platform.

`python -m tests.bench.chaos [--kills 200] [--seed 0]` prints one JSON object: for each kind of
victim how long until every tenant is served again, how many requests failed, of whom, and whether
any process was left over or any bystander was hit. Now and then an upgrade is begun instead, which
kills nothing, and the next kills come while it is under way. Ends with status 1 if something went
wrong that must not: a neighbour's request failed that was not on what was killed, or anything was
left over or hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from polyolo.models import sample_boards
from tests.e2e.platform import Platform, eventually, processes_below

RUNTIME, MODEL, GATEWAY, PLATFORM = "runtime", "model", "gateway", "platform"
UPGRADE = "upgrade"

_AT_ONCE_S = 0.05
"""A request sent so soon after a gateway's end may still use a connection to it."""


@dataclass
class Load:
    """One tenant's client in a closed loop on a thread, and what came of its requests."""

    url: str
    key: str
    picture: bytes
    outcomes: list[tuple[float, float, int]] = field(default_factory=list)
    """When it was sent, when it was over, and its status: 0 for a connection that broke."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as http:
            while not self._stop.is_set():
                sent = time.monotonic()
                try:
                    status = http.post("/v1/detect", content=self.picture).status_code
                except httpx.HTTPError:
                    status = 0
                self.outcomes.append((sent, time.monotonic(), status))
                self._stop.wait(0.02 if status == 200 else 0.1)

    def failed(self, since: float, sent: float = 0.0) -> int:
        """Return how many requests that were over after a moment have failed. sent: when at the
        earliest."""
        return sum(
            status != 200 for began, over, status in self.outcomes if over >= since and began > sent
        )

    def serves(self, since: float) -> bool:
        """Say whether a request that was sent after a moment was answered well."""
        return any(sent > since and status == 200 for sent, _, status in self.outcomes[-20:])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def parents() -> dict[int, int]:
    """Return the parent of every process that runs."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(entry.name)] = int(fields[1])
    return found


def below(root: int) -> set[int]:
    """Return the processes that descend from one."""
    family, level = parents(), {root}
    found: set[int] = set()
    while level := {pid for pid, parent in family.items() if parent in level}:
        found |= level
    return found


def of_home(home: Path) -> set[int]:
    """Return the processes that name a home as an argument, or work in it."""
    found = {pid for pid, _ in processes_below(home)}
    for pid in parents():
        try:
            if str(home) in str(Path(f"/proc/{pid}/cwd").readlink()):
                found.add(pid)
        except OSError:
            continue
    return found


class Chaos:
    """A platform under load, and what kills parts of it."""

    def __init__(self, platform: Platform, stack: ExitStack, tenants: int, seed: int) -> None:
        self.platform = platform
        self.random = random.Random(seed)
        picture = sample_boards()[0].read_bytes()
        self.tenants = {}
        self.loads = {}
        for number in range(tenants):
            tenant, client = platform.tenant(f"tenant-{number}")
            self.tenants[tenant.name] = tenant
            self.loads[tenant.name] = Load(platform.url, client.api_key, picture)
            stack.callback(self.loads[tenant.name].stop)
            client.close()
        self.bystanders = [
            subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            for _ in range(3)
        ]
        stack.callback(self.end_bystanders)
        self.settled(time.monotonic(), within=30)
        self.took: dict[str, list[float]] = {}
        self.failures: dict[str, Counter[str]] = {}

    def end_bystanders(self) -> None:
        for process in self.bystanders:
            process.kill()
            process.wait()

    def settled(self, since: float, within: float) -> float:
        """Wait until every tenant is served; return the seconds since a moment."""
        eventually(
            lambda: all(load.serves(since) for load in self.loads.values()),
            within=within,
            what="every tenant is served",
        )
        return time.monotonic() - since

    def kill(self, kind: str) -> None:
        """Kill something of a kind, and see everything come back."""
        name = self.random.choice(sorted(self.tenants))
        pid = self.pid(kind, name)
        time.sleep(self.random.uniform(0.0, 0.1))
        at = time.monotonic()
        os.kill(pid, signal.SIGUSR2 if kind == UPGRADE else signal.SIGKILL)
        if kind == PLATFORM:
            self.platform.restarted()
        took = self.settled(at, within=30)
        self.took.setdefault(kind, []).append(took)
        seen = self.failures.setdefault(kind, Counter())
        for other, load in self.loads.items():
            if kind in (RUNTIME, MODEL):
                seen["its own" if other == name else "others'"] += load.failed(at)
            elif kind == PLATFORM:
                seen["all"] += load.failed(at)
            else:
                seen["in flight"] += load.failed(at) - load.failed(at, at + _AT_ONCE_S)
                seen["others'"] += load.failed(at, at + _AT_ONCE_S)

    def pid(self, kind: str, name: str) -> int:
        """Return the process to kill."""
        process = self.platform.process
        assert process is not None
        if kind in (PLATFORM, UPGRADE):
            return process.pid
        if kind == GATEWAY:
            commands = dict(processes_below(self.platform.home))
            return next(pid for pid in commands if "polyolo.gateway" in commands[pid])
        runtime = self.platform.runtime_pid(self.tenants[name])
        if kind == RUNTIME:
            return runtime
        return eventually(lambda: below(runtime), within=10, what="a model's process").pop()

    def left_over(self) -> list[int]:
        """Return processes of the home that are not the platform's, once they had time to end."""
        process = self.platform.process
        assert process is not None

        def strays() -> set[int]:
            return of_home(self.platform.home) - below(process.pid) - {process.pid}

        try:
            eventually(lambda: not strays(), within=5, what="no process is left over")
        except BaseException:  # noqa: BLE001  # pytest's failure is none of Exception's
            return sorted(strays())
        return []

    def figures(self) -> dict[str, object]:
        """Return what came of it all."""
        return {
            "kills": {kind: len(took) for kind, took in self.took.items()},
            "served_again_s": {
                kind: {"p50": round(statistics.median(took), 2), "most": round(max(took), 2)}
                for kind, took in self.took.items()
            },
            "requests": sum(len(load.outcomes) for load in self.loads.values()),
            "failed": {kind: dict(seen) for kind, seen in self.failures.items()},
            "left_over": self.left_over(),
            "upgraded": self.platform.log().count("listens on")
            - 1
            - len(self.took.get(PLATFORM, ())),
            "bystanders_hit": sum(one.poll() is not None for one in self.bystanders),
        }


class Supervised(Platform):
    """A platform that is started again when it was killed, as by systemd."""

    def restarted(self) -> None:
        assert self.process is not None
        self.process.wait()
        self.start()


def run(
    kinds: Callable[[random.Random], str], kills: int, *, tenants: int = 3, seed: int = 0
) -> dict[str, object]:
    """Kill so often, of the kinds that are drawn, and return the figures."""
    platform = Supervised()
    with ExitStack() as stack:
        stack.callback(platform.close)
        platform.start()
        chaos = Chaos(platform, stack, tenants, seed)
        while kills:
            kind = kinds(chaos.random)
            try:
                chaos.kill(kind)
            except KeyboardInterrupt:  # what has been seen until then is worth telling
                break
            kills -= kind != UPGRADE
        return chaos.figures()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def kinds(drawn: random.Random) -> str:
        return drawn.choices((RUNTIME, MODEL, GATEWAY, PLATFORM, UPGRADE), (8, 6, 3, 3, 2))[0]

    figures = run(kinds, args.kills, seed=args.seed)
    json.dump(figures, sys.stdout)
    hurt = sum(seen["others'"] for seen in figures["failed"].values() if "others'" in seen)  # type: ignore[attr-defined]
    return 1 if figures["left_over"] or figures["bystanders_hit"] or hurt else 0


if __name__ == "__main__":
    sys.exit(main())
