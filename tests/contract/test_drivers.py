"""The Driver protocol: what every place where runtimes live must do. One suite for all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from polyolo.drivers import Driver
from polyolo.drivers.kubernetes.naming import place as namespace_of
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox.probe import probe
from polyolo.types import ModelSpec, Phase, RuntimeSpec, VersionSpec
from tests.cluster.clusters import inhabited

RUNTIME = (sys.executable, str(Path(__file__).with_name("small_runtime.py")))

T = TypeVar("T")


@dataclass
class Place:
    """A driver, and what happens to its runtimes from outside."""

    driver: Driver
    again: Callable[[], Driver]
    """Another driver of the same place, as after a restart of what uses it."""
    kill: Callable[[str], None]
    kill_second: Callable[[str], None]
    """Of two copies."""
    hang: Callable[[str], None]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Place]:
    with running(tmp_path, warm=0) as place:
        yield place


@pytest.fixture
def warm_processes(tmp_path: Path) -> Iterator[Place]:
    """Processes of which the first is started before anybody needs it."""
    with running(tmp_path, warm=1) as place:
        until(lambda: place.driver.wait(0.02) or list(tmp_path.glob("run/~*/io/runtime.sock")))
        yield place


@pytest.fixture
def confined_processes(tmp_path: Path) -> Iterator[Place]:
    """The same, within every layer of a sandbox that this host gives."""
    isolation = probe()
    with running(tmp_path, warm=1, isolation=isolation) as place:
        until(lambda: place.driver.wait(0.02) or list(tmp_path.glob("run/~*/io/runtime.sock")))
        yield place
    if isolation.groups is not None:
        isolation.groups.close()


@contextmanager
def running(tmp_path: Path, **options: Any) -> Iterator[Place]:
    root = tmp_path / "run"
    driver = ProcessDriver(root, RUNTIME, drain_s=0.5, **options)

    def send(copy: str, number: int) -> None:
        process = json.loads((root / copy / "runtime.json").read_text())
        os.kill(process["pid"], number)

    try:
        yield Place(
            driver=driver,
            again=lambda: ProcessDriver(root, RUNTIME, drain_s=0.5),
            kill=lambda tenant: send(tenant, signal.SIGKILL),
            kill_second=lambda tenant: send(f"{tenant}~2", signal.SIGKILL),
            hang=lambda tenant: send(tenant, signal.SIGSTOP),
        )
    finally:
        driver.close()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Place]:
    """A Kubernetes driver of an emulated cluster, whose pods are real processes."""
    with inhabited(RUNTIME, tmp_path / "node") as (cluster, node):

        def send(tenant: str, number: int, *, first: int = 0) -> None:
            for pid in node.pids(namespace_of(tenant, cluster.settings.platform).namespace)[first:]:
                os.kill(pid, number)

        yield Place(
            driver=cluster.driver(),
            again=cluster.driver,
            kill=lambda tenant: send(tenant, signal.SIGKILL),
            kill_second=lambda tenant: send(tenant, signal.SIGKILL, first=1),
            hang=lambda tenant: send(tenant, signal.SIGSTOP),
        )


@pytest.fixture(params=["processes", "warm_processes", "confined_processes", "pods"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def spec(tmp_path: Path) -> RuntimeSpec:
    return make_spec(tmp_path, "t_a")


def make_spec(directory: Path, tenant: str, *, model: str = "one", digest: str = "a" * 64):
    file = directory / digest
    file.write_bytes(b"model")
    version = VersionSpec(version=1, digest=digest, uri=str(file))
    models = (ModelSpec(name=model, current=1, versions=(version,)),)
    return RuntimeSpec(tenant=tenant, generation=1, default_model=model, models=models)


def until(look: Callable[[], T], within: float = 10.0) -> T:
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return seen


def ready(driver: Driver, tenant: str, generation: int = 1, copies: int = 1) -> Callable[[], bool]:
    def look() -> bool:
        status = driver.observe([tenant]).get(tenant)
        return (
            status is not None
            and status.phase is Phase.READY
            and status.observed_generation == generation
            and len(status.endpoints) == copies
        )

    return look


def gone(driver: Driver, tenant: str) -> Callable[[], bool]:
    def look() -> bool:
        driver.remove(tenant)
        return tenant not in driver.observe()

    return look


def phase(driver: Driver, tenant: str) -> Phase | None:
    status = driver.observe([tenant]).get(tenant)
    return status.phase if status else None


def test_nothing_is_observed_where_nothing_is(place: Place):
    """No trace of a tenant: it is not in the answer, and removing it is nothing."""
    place.driver.remove("t_a")
    assert place.driver.observe() == {}
    assert place.driver.observe(["t_a"]) == {}
    assert place.driver.wait(0) == set()


def test_a_runtime_starts_and_answers(place: Place, spec: RuntimeSpec):
    """After apply it is STARTING, then READY with endpoint, generation and models."""
    place.driver.apply(spec)
    assert phase(place.driver, "t_a") in (Phase.STARTING, Phase.READY)
    until(ready(place.driver, "t_a"))
    status = place.driver.observe()["t_a"]
    assert len(status.endpoints) == 1
    assert [(model.name, model.version) for model in status.models] == [("one", 1)]


def test_apply_again_is_harmless(place: Place, spec: RuntimeSpec):
    """The same spec twice: one runtime, the same one."""
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))
    before = place.driver.observe()
    place.driver.apply(spec)
    assert place.driver.observe() == before
    assert place.driver.wait(0) == set()


def test_a_changed_spec_reaches_the_running_runtime(place: Place, spec: RuntimeSpec):
    """A new generation comes into force without a restart."""
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))
    place.driver.apply(replace(spec, generation=2))
    until(ready(place.driver, "t_a", generation=2))
    assert place.driver.wait(0) == set()


def test_a_change_while_starting_is_not_lost(place: Place, spec: RuntimeSpec):
    """Applied again until it is in force, a change made during the start gets there."""
    place.driver.apply(spec)
    place.driver.apply(replace(spec, generation=2))

    def in_force() -> bool:
        place.driver.apply(replace(spec, generation=2))
        return ready(place.driver, "t_a", generation=2)()

    until(in_force)


def test_tenants_do_not_meet(place: Place, tmp_path: Path):
    """Two runtimes, two endpoints; removing one leaves the other."""
    for tenant in ("t_a", "t_b"):
        place.driver.apply(make_spec(tmp_path, tenant))
    until(ready(place.driver, "t_a"))
    until(ready(place.driver, "t_b"))
    first, second = (place.driver.observe()[tenant].endpoints for tenant in ("t_a", "t_b"))
    assert set(first).isdisjoint(second)
    until(gone(place.driver, "t_a"))
    assert list(place.driver.observe()) == ["t_b"]
    assert ready(place.driver, "t_b")()


def test_a_killed_runtime_is_reported_and_comes_back(place: Place, spec: RuntimeSpec):
    """Its end is told by wait, observed as FAILED with a reason, and cured by apply."""
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))
    place.kill("t_a")
    assert until(lambda: place.driver.wait(1.0)) == {"t_a"}
    status = place.driver.observe()["t_a"]
    assert status.phase is Phase.FAILED
    assert status.reason
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))


def test_a_runtime_that_ends_by_itself_is_failed(place: Place, tmp_path: Path):
    """An exit at start is FAILED, however often it is observed."""
    place.driver.apply(make_spec(tmp_path, "t_a", model="crash"))
    until(lambda: phase(place.driver, "t_a") is Phase.FAILED)
    assert phase(place.driver, "t_a") is Phase.FAILED
    until(gone(place.driver, "t_a"))


def test_a_hung_runtime_is_failed_and_replaced(place: Place, spec: RuntimeSpec):
    """It runs and does not answer: FAILED within 10 s, and apply puts another in its place."""
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))
    place.hang("t_a")
    until(lambda: phase(place.driver, "t_a") is Phase.FAILED)
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))


def test_removal_drains_then_kills(place: Place, tmp_path: Path):
    """A runtime that ignores the request to end is STOPPING for its time, then gone."""
    place.driver.apply(make_spec(tmp_path, "t_a", model="stubborn"))
    until(ready(place.driver, "t_a"))
    place.driver.remove("t_a")
    assert phase(place.driver, "t_a") is Phase.STOPPING
    until(gone(place.driver, "t_a"))


def test_apply_does_not_wait_for_the_end_of_a_stopping_one(place: Place, tmp_path: Path):
    """While the old one drains another one answers; the old one still ends in its time."""
    stubborn = make_spec(tmp_path, "t_a", model="stubborn")
    place.driver.apply(stubborn)
    until(ready(place.driver, "t_a"))
    before = place.driver.observe()["t_a"].endpoints
    place.driver.remove("t_a")
    place.driver.apply(stubborn)
    until(ready(place.driver, "t_a"))
    assert set(place.driver.observe()["t_a"].endpoints).isdisjoint(before)
    old = Path(before[0].removeprefix("unix:"))
    until(lambda: place.driver.wait(0.05) or not old.exists())
    assert ready(place.driver, "t_a")()


def test_removed_while_starting(place: Place, spec: RuntimeSpec):
    """A runtime that has not answered yet can be removed like any other."""
    place.driver.apply(spec)
    until(gone(place.driver, "t_a"))


def test_the_driver_keeps_no_state(place: Place, spec: RuntimeSpec):
    """Another driver object sees the same runtimes, tells them specs and removes them."""
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))
    other = place.again()
    assert other.observe() == place.driver.observe()
    other.apply(replace(spec, generation=2))
    until(ready(place.driver, "t_a", generation=2))
    until(gone(other, "t_a"))
    assert place.driver.observe() == {}
    if isinstance(other, ProcessDriver):
        other.close()


def test_a_missing_model_file_is_an_os_error(place: Place, spec: RuntimeSpec, tmp_path: Path):
    """A start that cannot be made leaves nothing running, and can be tried again."""
    (tmp_path / ("a" * 64)).unlink()
    with pytest.raises(FileNotFoundError):
        place.driver.apply(spec)
    assert phase(place.driver, "t_a") in (None, Phase.ABSENT)
    (tmp_path / ("a" * 64)).write_bytes(b"model")
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))


def test_threads_may_do_anything_at_once(place: Place, tmp_path: Path):
    """Eight threads apply, observe and remove; in the end the last word counts."""
    specs = [make_spec(tmp_path, f"t_{number}") for number in range(3)]
    surprises: list[BaseException] = []

    def play(seed: int) -> None:
        try:
            for step in range(12):
                spec = specs[(seed + step) % 3]
                with suppress(OSError):
                    place.driver.apply(spec)
                place.driver.observe()
                if (seed + step) % 4 == 0:
                    place.driver.remove(spec.tenant)
        except BaseException as error:  # noqa: BLE001
            surprises.append(error)

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []
    for spec in specs:
        until(gone(place.driver, spec.tenant))
        place.driver.apply(spec)
        until(ready(place.driver, spec.tenant))


def test_copies_come_and_go(place: Place, spec: RuntimeSpec):
    """Two, three, one, none: each with an endpoint of its own, and the others stay as they are."""
    seen: list[set[str]] = []
    for number in (2, 3, 1):
        place.driver.apply(replace(spec, replicas=number))
        until(ready(place.driver, "t_a", copies=number))
        seen.append(set(place.driver.observe()["t_a"].endpoints))
    assert seen[2] < seen[0] < seen[1]

    def asleep() -> bool:
        place.driver.apply(replace(spec, replicas=0))
        return phase(place.driver, "t_a") in (None, Phase.ASLEEP)

    until(asleep)
    place.driver.apply(spec)
    until(ready(place.driver, "t_a"))


def test_a_changed_spec_reaches_every_copy(place: Place, spec: RuntimeSpec):
    """The generation that is told is in force in all of them."""
    place.driver.apply(replace(spec, replicas=2))
    until(ready(place.driver, "t_a", copies=2))
    place.driver.apply(replace(spec, replicas=2, generation=2))
    until(ready(place.driver, "t_a", copies=2, generation=2))


def test_one_copy_is_killed_and_comes_back(place: Place, spec: RuntimeSpec):
    """The other one answers all the time; what happened is told until it has been replaced."""
    both = replace(spec, replicas=2)
    place.driver.apply(both)
    until(ready(place.driver, "t_a", copies=2))
    place.kill_second("t_a")
    until(lambda: place.driver.wait(1.0) == {"t_a"})
    status = place.driver.observe()["t_a"]
    assert (status.phase, len(status.endpoints)) == (Phase.READY, 1)
    assert status.reason
    place.driver.apply(both)
    until(ready(place.driver, "t_a", copies=2))
    assert place.driver.observe()["t_a"].reason == ""


@pytest.mark.parametrize("name", ["../t_a", "t_a~2", "~1", "", ".", "a/b", "x" * 65, "t_a\n"])
def test_a_tenant_cannot_name_another_place(place: Place, spec: RuntimeSpec, name: str):
    """An id that is no plain word is refused before anything is touched."""
    with pytest.raises(ValueError, match="not a tenant"):
        place.driver.apply(replace(spec, tenant=name))
    with pytest.raises(ValueError, match="not a tenant"):
        place.driver.remove(name)
