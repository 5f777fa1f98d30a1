"""What is particular about runtimes as processes: directories, pids, environment, logs, drain."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from polyolo.drivers import rundir
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox import kernel
from polyolo.types import ModelSpec, Phase, RuntimeSpec, VersionSpec

RUNTIME = (sys.executable, str(Path(__file__).parents[1] / "contract" / "small_runtime.py"))


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path / "run", RUNTIME, drain_s=5.0)
    yield driver
    driver.close()


@pytest.fixture
def bystander() -> Iterator[kernel.Identity]:
    """Give a process that is nobody's runtime."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    identity = kernel.identify(process.pid)
    assert identity is not None
    yield identity
    process.kill()
    process.wait()


def spec_of(tmp_path: Path, *digests: str, generation: int = 1, model: str = "one") -> RuntimeSpec:
    versions = []
    for number, digest in enumerate(digests or ("a" * 64,), 1):
        file = tmp_path / digest
        file.write_bytes(digest.encode())
        versions.append(VersionSpec(version=number, digest=digest, uri=str(file)))
    models = (ModelSpec(name=model, current=1, versions=tuple(versions)),)
    return RuntimeSpec(tenant="t_a", generation=generation, default_model=model, models=models)


def until(look: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not look():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def is_ready(driver: ProcessDriver, generation: int = 1) -> bool:
    status = driver.observe(["t_a"])["t_a"]
    return status.phase is Phase.READY and status.observed_generation == generation


def surroundings(directory: Path) -> Any:
    """Return what a runtime says of its environment and working directory."""
    transport = httpx.HTTPTransport(uds=str(directory / "io/runtime.sock"))
    with httpx.Client(transport=transport, base_url="http://runtime") as client:
        return client.get("/environment").json()


def test_the_directory_is_private_and_complete(driver: ProcessDriver, tmp_path: Path):
    """Mode 0700, a spec with relative paths, models as links to the store's files."""
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    directory = tmp_path / "run" / "t_a"
    assert directory.stat().st_mode & 0o777 == 0o700
    document = json.loads((directory / "spec.json").read_text())
    uri = document["models"][0]["versions"][0]["uri"]
    assert uri == f"models/{'a' * 64}.onnx"
    assert (directory / uri).samefile(tmp_path / ("a" * 64))


def test_a_runtime_inherits_no_secret(driver: ProcessDriver, tmp_path: Path, monkeypatch):
    """Its environment holds the few variables it needs; its directory is its own."""
    for name in ("POLYOLO_OPERATOR_KEY", "POLYOLO_GATEWAY_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    directory = tmp_path / "run" / "t_a"
    found = surroundings(directory)
    assert set(found["environment"]) <= {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONSAFEPATH",
    }  # fmt: skip
    assert found["directory"] == str(directory)


@pytest.mark.parametrize("warm", [0, 1])
def test_a_runtime_gets_its_key_once(tmp_path: Path, warm: int):
    """At its start, or when a warm one gets its tenant; not with every change, nor in its files."""
    asked: list[str] = []

    def key_of(tenant: str) -> str:
        asked.append(tenant)
        return "5ec4e7"

    driver = ProcessDriver(tmp_path / "run", RUNTIME, drain_s=5.0, warm=warm, key_of=key_of)
    try:
        until(lambda: driver.wait(0.02) or len(list(tmp_path.glob("run/~*/io/*.sock"))) == warm)
        driver.apply(spec_of(tmp_path))
        until(lambda: is_ready(driver))
        for generation in (2, 3):
            driver.apply(spec_of(tmp_path, generation=generation))
            until(lambda wanted=generation: is_ready(driver, wanted))
    finally:
        driver.close()
    assert asked == ["t_a"]


def test_a_warm_runtime_takes_its_scratch_directory_along(tmp_path: Path):
    """Its directory gets its tenant's name while it runs; TMPDIR means the one that is there now,
    for the processes that it starts from then on too."""
    driver = ProcessDriver(tmp_path / "run", RUNTIME, drain_s=5.0, warm=1)
    try:
        until(lambda: driver.wait(0.02) or list(tmp_path.glob("run/~*/io/*.sock")))
        driver.apply(spec_of(tmp_path))
        until(lambda: is_ready(driver))
        assert not list(tmp_path.glob("run/~*")), "the warm one was not taken"
        directory = tmp_path / "run" / "t_a"
        found = surroundings(directory)
        assert found["directory"] == str(directory)
        assert Path(found["directory"], found["environment"]["TMPDIR"]).is_dir()
    finally:
        driver.close()


def test_files_that_no_spec_names_go_once_it_is_in_force(driver: ProcessDriver, tmp_path: Path):
    """A model that was taken out of the spec is dropped from the directory, not before."""
    driver.apply(spec_of(tmp_path, "a" * 64, "b" * 64))
    until(lambda: is_ready(driver))
    models = tmp_path / "run" / "t_a" / "models"
    assert len(list(models.iterdir())) == 2
    driver.apply(spec_of(tmp_path, "b" * 64, generation=2))
    until(lambda: is_ready(driver, 2))
    assert [file.stem for file in models.iterdir()] == ["b" * 64]


@pytest.mark.parametrize(
    "litter",
    [
        {"runtime.json": "{", "spec.json": "[]", "exit.json": "7", "stopping": "soon"},
        {"runtime.json": '{"pid": 1, "started": 1}', "exit.json": "\0"},
        {
            "io/runtime.sock/file": "x",
            "io/grpc.sock": "x",
            "runtime.json/file": "x",
            "models": "x",
            "log/file": "x",
        },
        {"models/half.part": "x", "models/dir/file": "x", "tmp": "x", "ready/file": "x"},
    ],
)
def test_a_directory_full_of_garbage_is_no_obstacle(driver: ProcessDriver, tmp_path: Path, litter):
    """Whatever a predecessor left: the runtime starts, and nobody else is touched."""
    for name, content in litter.items():
        file = tmp_path / "run" / "t_a" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (tmp_path / "run" / "README").write_text("not a runtime")
    assert driver.observe()["t_a"].phase is Phase.ABSENT
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    assert set(driver.observe()) == {"t_a"}


def test_a_link_in_place_of_the_directory_leads_nowhere(driver: ProcessDriver, tmp_path: Path):
    """A planted link is replaced, what it points to stays as it is."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (tmp_path / "run" / "t_a").symlink_to(elsewhere)
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    assert [entry.name for entry in elsewhere.iterdir()] == ["precious"]


def test_a_reused_pid_is_never_signalled(driver: ProcessDriver, tmp_path: Path, bystander):
    """The record names a pid that belongs to another process by now: it lives on."""
    directory = tmp_path / "run" / "t_a"
    directory.mkdir(parents=True)
    stale = {"pid": bystander.pid, "started": bystander.started - 1}
    (directory / "runtime.json").write_text(json.dumps(stale))
    assert driver.observe()["t_a"].phase is Phase.ABSENT
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    (directory / "runtime.json").write_text(json.dumps(stale))
    driver.remove("t_a")
    assert kernel.runs(bystander)
    assert kernel.send(replace(bystander, started=1), signal.SIGKILL)
    assert kernel.runs(bystander)
    assert not kernel.send(bystander, signal.SIGCONT)


def test_a_directory_deleted_by_hand_leaves_no_stray(driver: ProcessDriver, tmp_path: Path):
    """The next start ends the process that lost its directory: never two for one tenant."""
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    record = tmp_path / "run" / "t_a" / "runtime.json"
    stray = json.loads(record.read_text())["pid"]
    shutil.rmtree(record.parent)
    assert driver.observe() == {}
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    assert not Path(f"/proc/{stray}").exists()


def test_a_log_is_bounded(driver: ProcessDriver, tmp_path: Path):
    """Past its limit it is moved aside, once; the process goes on writing to the same file."""
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    directory = tmp_path / "run" / "t_a"
    with (directory / "log").open("ab") as log:
        log.write(b"x" * (rundir.LOG_LIMIT + 1))
    driver.observe()
    assert (directory / "log").stat().st_size == 0
    assert (directory / "log.1").stat().st_size > rundir.LOG_LIMIT


def test_close_drains_all_at_once(driver: ProcessDriver, tmp_path: Path):
    """Three runtimes that ignore SIGTERM take one grace time together, then nothing is left."""
    slow = ProcessDriver(tmp_path / "slow", RUNTIME, drain_s=1.0)
    spec = spec_of(tmp_path, model="stubborn")
    for name in ("t_a", "t_b", "t_c"):
        slow.apply(replace(spec, tenant=name))
    until(lambda: {s.phase for s in slow.observe().values()} == {Phase.READY})
    pids = [
        json.loads(file.read_text())["pid"] for file in (tmp_path / "slow").glob("*/runtime.json")
    ]
    started = time.monotonic()
    slow.close()
    assert 1.0 <= time.monotonic() - started < 2.5
    assert list((tmp_path / "slow").iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # not even as zombies
    with pytest.raises(OSError, match="stopping"):
        slow.apply(spec)


def test_a_home_too_deep_for_sockets_is_told_at_once(tmp_path: Path):
    """With the number of bytes to save, not as a runtime that never starts."""
    with pytest.raises(OSError, match="bytes too long"):
        ProcessDriver(tmp_path / ("x" * 100), RUNTIME)


def test_a_runtime_that_refuses_its_spec_goes_on_with_the_old_one(
    driver: ProcessDriver, tmp_path: Path
):
    """The push is an OSError for the caller to repeat; the runtime is not killed for it."""
    driver.apply(spec_of(tmp_path))
    until(lambda: is_ready(driver))
    before = driver.observe()
    with pytest.raises(OSError, match="refused its spec with status 422"):
        driver.apply(spec_of(tmp_path, generation=2, model="refused"))
    assert driver.observe() == before
    assert driver.wait(0) == set()


def test_a_leftover_of_a_dead_platform_makes_room(driver: ProcessDriver, tmp_path: Path):
    """A runtime whose platform is gone and that lives on all the same is killed, then replaced."""
    directory = tmp_path / "run" / "t_a"
    directory.mkdir(parents=True)
    program = (  # a child that is not ours: its parent exits at once
        "import os, subprocess, sys; "
        "c = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(c.pid); sys.stdout.flush(); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", program], capture_output=True).stdout)
    orphan = kernel.identify(pid)
    assert orphan is not None
    try:
        record = {"pid": orphan.pid, "started": orphan.started}
        (directory / "runtime.json").write_text(json.dumps(record))
        assert driver.observe()["t_a"].phase is Phase.ABSENT
        driver.apply(spec_of(tmp_path))
        assert not kernel.runs(orphan)
        until(lambda: is_ready(driver))
    finally:
        if kernel.runs(orphan):
            os.kill(orphan.pid, signal.SIGKILL)
