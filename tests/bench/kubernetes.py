"""How long a cluster of tenants takes to come about, and how little a look at it costs.

    python -m tests.bench.kubernetes [--tenants 1000] [--scaling control|hpa|keda]

The API server is the emulated one, in a process of its own: on two cores, one is the platform's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from polyolo.drivers.kubernetes.cluster import at
from polyolo.drivers.kubernetes.driver import KubernetesDriver
from polyolo.drivers.kubernetes.naming import selector
from polyolo.drivers.kubernetes.settings import Scaling
from polyolo.types import RuntimeSpec
from tests.cluster.clusters import SETTINGS, keys, spec_of

WORKERS = 4  # threads of the reconciler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--scaling", type=Scaling, default=Scaling.CONTROL)
    asked = parser.parse_args()
    settings = replace(SETTINGS, scaling=asked.scaling)
    command = [sys.executable, "-m", "tests.cluster.apiserver"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        url = it.stdout.readline().strip()

        def driver() -> KubernetesDriver:
            marks = selector(settings.platform)
            return KubernetesDriver(at(url, answer_s=5.0, selector=marks), settings, keys)

        def writes() -> int:
            with urllib.request.urlopen(f"{url}/writes") as answer:
                return int(answer.read())

        def timed(what: str, used: KubernetesDriver, specs: list[RuntimeSpec]) -> None:
            before, started = writes(), time.perf_counter()
            longest = 0.0

            def one(spec: RuntimeSpec) -> float:
                begun = time.perf_counter()
                used.apply(spec)
                return time.perf_counter() - begun

            with ThreadPoolExecutor(WORKERS) as pool:
                longest = max(pool.map(one, specs))
            took = time.perf_counter() - started
            print(
                f"{what}: {took:.1f} s, {len(specs) / took:.0f} tenants/s, the slowest "
                f"{longest * 1e3:.0f} ms, {writes() - before} writes"
            )

        specs = [
            spec_of(f"t_{number:010d}", replicas=number % 2) for number in range(asked.tenants)
        ]
        first = driver()
        timed("from scratch", first, specs)
        timed("the same again", first, specs)
        first.close()
        started = time.perf_counter()
        heir = driver()
        print(f"another process knows all of it after {time.perf_counter() - started:.1f} s")
        timed("its first pass", heir, specs)
        started = time.perf_counter()
        asleep = [spec.tenant for spec in specs if spec.replicas == 0]
        heir.observe(asleep)
        print(f"looking at {len(asleep)} that sleep: {time.perf_counter() - started:.1f} s")
        timed("one setting of each", heir, [replace(spec, generation=2) for spec in specs])
        heir.close()
        assert it.stdin is not None
        it.stdin.close()


if __name__ == "__main__":
    main()
