"""What the sandbox costs: a runtime's start, a throw-away process, a request, confined or not.

`python -m tests.bench.sandbox [--times N]` prints one JSON object, milliseconds: the median and,
for a busy machine, the least. Each pair is taken in turns in one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from polyolo import models
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import run_job
from polyolo.sandbox.layers import UNCONFINED, Isolation
from polyolo.sandbox.probe import probe
from polyolo.types import ModelSpec, Phase, RuntimeSpec, VersionSpec

SAMPLES = Path(models.__file__).parent / "samples"
SMALL = (sys.executable, str(Path(__file__).parents[1] / "contract/small_runtime.py"))
REAL = (sys.executable, "-m", "polyolo.serving")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def compared(times: int, works: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            taken[name].append(work())
    return {
        name: {"median": round(statistics.median(values), 1), "least": round(min(values), 1)}
        for name, values in taken.items()
    }


def start(home: Path, command: tuple[str, ...], isolation: Isolation) -> float:
    """Return how long it takes from nothing to a runtime that answers."""
    driver = ProcessDriver(home / "run", command, drain_s=0.5, isolation=isolation)
    try:
        return timed(lambda: _ready(driver, home))
    finally:
        driver.close()


def requests(home: Path, isolation: Isolation, times: int) -> float:
    """Return the median of a detection, straight at the runtime."""
    driver = ProcessDriver(home / "run", REAL, drain_s=0.5, isolation=isolation)
    picture = next(one for one in sorted(SAMPLES.iterdir()) if one.suffix in (".png", ".jpg"))
    try:
        endpoint = _ready(driver, home)
        with httpx.Client(transport=httpx.HTTPTransport(uds=endpoint)) as client:

            def ask() -> None:
                answer = client.post("http://runtime/v1/detect", content=picture.read_bytes())
                answer.raise_for_status()

            return statistics.median(timed(ask) for _ in range(times))
    finally:
        driver.close()


def _ready(driver: ProcessDriver, home: Path) -> str:
    file = models.bundled("pcb", 2)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (home / "model").write_bytes(file.read_bytes())
    version = VersionSpec(version=1, digest=digest, uri=str(home / "model"))
    model = ModelSpec(name="pcb", current=1, versions=(version,))
    driver.apply(RuntimeSpec(tenant="t_a", generation=1, default_model="pcb", models=(model,)))
    while (status := driver.observe(["t_a"])["t_a"]).phase is not Phase.READY:
        if status.phase is Phase.FAILED:
            raise SystemExit(f"{status.reason}\n{(home / 'run/t_a/log').read_text()}")
        time.sleep(0.002)
    return status.endpoints[0].removeprefix("unix:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    asked = parser.parse_args()
    isolation = probe()
    home = Path(tempfile.mkdtemp(prefix="polyolo-bench-"))
    kinds = {"direct": UNCONFINED, "confined": isolation}
    program = [sys.executable, "-I", "-S", "-c", ""]

    def job(how: Isolation) -> float:
        return timed(lambda: run_job(program, Confinement(), how, time_s=60))

    try:
        found = {
            "missing": dict(isolation.missing),
            "job": compared(asked.times, {k: lambda h=how: job(h) for k, how in kinds.items()}),
            "small runtime": compared(
                asked.times, {k: lambda h=how: start(home, SMALL, h) for k, how in kinds.items()}
            ),
            "real runtime": compared(
                asked.times, {k: lambda h=how: start(home, REAL, h) for k, how in kinds.items()}
            ),
            "detection": compared(
                3,
                {k: lambda h=how: requests(home, h, asked.times) for k, how in kinds.items()},
            ),
        }
    finally:
        shutil.rmtree(home)
        if isolation.groups is not None:
            isolation.groups.close()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
