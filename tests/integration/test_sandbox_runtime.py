"""Runtimes in a sandbox, seen from outside: who is signalled, what is trusted, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from polyolo.drivers.precedence import AHEAD
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox import kernel
from polyolo.sandbox.cgroups import Groups
from polyolo.sandbox.confinement import BACKGROUND, Confinement
from polyolo.sandbox.hierarchies import find
from polyolo.sandbox.job import run_job
from polyolo.sandbox.layers import CGROUPS, Isolation, Layer
from polyolo.sandbox.probe import probe
from polyolo.types import ModelSpec, Phase, Resources, RuntimeSpec, VersionSpec

RUNTIME = (sys.executable, str(Path(__file__).parents[1] / "contract/small_runtime.py"))
POLYOLO = Path(sys.executable).parent / "polyolo"

T = TypeVar("T")


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    found = probe()
    yield found
    if found.groups is not None:
        found.groups.close()


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's tmp_path: its length would not leave room for the sockets' names.
    made = Path(tempfile.mkdtemp(prefix="polyolo-sb-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def driver(home: Path, isolation: Isolation) -> Iterator[ProcessDriver]:
    made = ProcessDriver(home / "run", RUNTIME, drain_s=0.5, isolation=isolation)
    yield made
    made.close()


@pytest.fixture
def spec(home: Path) -> RuntimeSpec:
    (home / "model").write_bytes(b"model")
    version = VersionSpec(version=1, digest="a" * 64, uri=str(home / "model"))
    models = (ModelSpec(name="one", current=1, versions=(version,)),)
    return RuntimeSpec(tenant="t_a", generation=1, default_model="one", models=models)


def until(look: Callable[[], T], within: float = 15.0) -> T:
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return seen


def started(driver: ProcessDriver, spec: RuntimeSpec, home: Path) -> int:
    """Have it run, and return its pid."""
    driver.apply(spec)
    until(lambda: driver.observe()["t_a"].phase is Phase.READY)
    return int(json.loads((home / "run/t_a/runtime.json").read_text())["pid"])


def needs(isolation: Isolation, *layers: Layer) -> None:
    for layer in layers:
        if layer not in isolation:
            pytest.skip(f"{layer} is not here: {isolation.missing[layer]}")


def test_it_is_another_user_in_namespaces_of_its_own(driver, spec, home, isolation):
    """Seen from outside: not root, without capabilities, filtered, and in nobody's namespaces."""
    needs(isolation, Layer.MOUNT, Layer.ACCOUNT, Layer.SECCOMP)
    process = Path(f"/proc/{started(driver, spec, home)}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert os.geteuid() not in set(map(int, status["Uid"].split()))
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    for name in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup"):
        mine, its = (p / "ns" / name for p in (Path("/proc/self"), process))
        assert mine.readlink() != its.readlink(), name


def test_a_stolen_socket_is_not_trusted(driver, spec, home):
    """Who listens in the place of the runtime is not asked, and what it would say not believed."""
    started(driver, spec, home)
    path = home / "run/t_a/io/runtime.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as thief:
        thief.bind(str(path))
        thief.listen()
        assert driver.observe()["t_a"].phase is not Phase.READY
        thief.setblocking(False)
        with thief.accept()[0] as heard:
            assert heard.recv(100) == b""
        until(lambda: driver.apply(spec) or driver.observe()["t_a"].phase is Phase.READY)


def test_a_record_of_another_boot_names_nobody(driver, spec, home):
    """After a reboot a pid and a start time may come back: that process is not ours to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        process = kernel.identify(bystander.pid)
        assert process is not None
        (home / "run/t_a").mkdir()
        record = {"pid": process.pid, "started": process.started, "boot": "another"}
        (home / "run/t_a/runtime.json").write_text(json.dumps(record))
        assert driver.observe()["t_a"].phase is Phase.ABSENT
        started(driver, spec, home)
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_the_sandboxs_own_process_is_killed(driver, spec, home, isolation):
    """Nothing of the runtime lives on without it, and another one takes its place."""
    needs(isolation, Layer.PID)
    pid = started(driver, spec, home)
    process = kernel.identify(pid)
    outer = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(outer, signal.SIGKILL)
    until(lambda: not kernel.runs(process))
    until(lambda: driver.observe()["t_a"].phase is Phase.FAILED)
    assert started(driver, spec, home) != pid


def test_it_ends_with_its_platform(spec, home):
    """A platform that is killed leaves no runtime behind, however early that happens.

    Killed before the sandbox has let our code in, bubblewrap may leave the process that was to
    become it: without a parent to wait for, it waits for ever. The next platform ends that one.
    """
    program = """
import sys
from pathlib import Path
import msgspec
from polyolo.drivers.precedence import AHEAD
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox.probe import probe
from polyolo.types import RuntimeSpec
root, command, document = sys.argv[1:]
driver = ProcessDriver(Path(root), command.split(), isolation=probe())
driver.apply(msgspec.json.decode(document, type=RuntimeSpec))
print("started", flush=True)
input()
"""
    arguments = [str(home / "run"), " ".join(RUNTIME), msgspec.json.encode(spec).decode()]
    left: list[kernel.Identity] = []
    for moment in ("recorded", "inside", "ready"):
        with subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as platform:
            assert platform.stdout is not None
            assert platform.stdout.readline() == b"started\n"
            assert not any(map(kernel.runs, left))
            document = json.loads((home / "run/t_a/runtime.json").read_text())
            process = kernel.Identity(pid=document["pid"], started=document["started"])
            if moment == "inside":
                name = Path(f"/proc/{process.pid}/comm")
                until(lambda name=name: name.read_text() != "bwrap\n")
            elif moment == "ready":
                until(lambda: (home / "run/t_a/io/runtime.sock").exists())
            platform.kill()
        if moment == "recorded":
            left.append(process)
        else:
            until(lambda process=process: not kernel.runs(process))


def test_limits_change_while_it_runs(driver, spec, home, isolation):
    """A plan's new limits are in force without a restart, and gone with the runtime."""
    needs(isolation, *CGROUPS)
    pid = started(driver, spec, home)
    more = replace(
        spec, generation=2, resources=Resources(cpus=1.5, memory_bytes=3 << 30, processes=77)
    )
    driver.apply(more)
    found = []
    for path in isolation_of(pid):
        assert path.is_dir()
        for name in ("pids.max", "memory.max", "memory.limit_in_bytes", "cpu.cfs_quota_us"):
            if (path / name).exists():
                found.append((path / name).read_text().strip())
    assert {"77", str(3 << 30)} <= set(found)
    groups = isolation_of(pid)
    driver.remove("t_a")
    until(lambda: driver.remove("t_a") or not driver.observe())
    assert not any(path.exists() for path in groups)


def test_who_opens_models_lets_others_go_first(driver, spec, home, isolation):
    """A runtime that rests goes first; one that is told something new yields to all that do."""
    needs(isolation, Layer.CPU)
    pid = started(driver, spec, home)
    driver.wait(0.0)
    assert weight_of(pid) == AHEAD
    driver.apply(replace(spec, generation=2))
    assert weight_of(pid) <= 1.0


def test_what_a_group_has_used_is_counted(isolation):
    """Of all its processes, those that have ended included."""
    needs(isolation, Layer.CPU)
    group = isolation.group(Confinement())
    assert group is not None
    code = "input(); sum(range(10_000_000))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        group.add(process.pid)
        before = group.used_s()
        process.communicate(b"\n")
    used = group.used_s()
    assert before is not None
    assert used is not None
    assert used > before + 0.01
    assert group.remove()


def test_what_is_kept_ready_goes_last(home, spec, isolation):
    """A process that has no tenant yet yields to all that have one, until it gets one."""
    needs(isolation, Layer.CPU)
    driver = ProcessDriver(home / "run", RUNTIME, warm=1, drain_s=0.0, isolation=isolation)
    try:
        ready = home / "run/~1/io/runtime.sock"
        until(lambda: driver.wait(0.05) or ready.exists())
        pid = int(json.loads((home / "run/~1/runtime.json").read_text())["pid"])
        assert weight_of(pid) <= BACKGROUND
        assert started(driver, spec, home) == pid
        assert weight_of(pid) == AHEAD
    finally:
        driver.close()


def weight_of(pid: int) -> float:
    """Return the weight of a process's group, 0 of one that yields."""
    for path in isolation_of(pid):
        for name, one in (("cpu.weight", 100), ("cpu.shares", 1024)):
            if (path / name).exists():
                yields = path / "cpu.idle"
                if yields.exists() and int(yields.read_text()):
                    return 0.0
                return int((path / name).read_text()) / one
    raise AssertionError("it has no group")


def isolation_of(pid: int) -> list[Path]:
    """Return the directories of the groups that were made for a process."""
    names = {
        line.rpartition("/")[2]
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if "polyolo-" in line
    }
    places, _ = find()
    return [
        path
        for hierarchy in places.values()
        for name in names
        for path in hierarchy.base.glob(f"polyolo-*/{name}")
    ]


def test_it_sees_its_own_limits(isolation):
    """Inside, the kernel tells of the limits of the group, as in a container."""
    needs(isolation, Layer.MOUNT, Layer.MEMORY, Layer.CPU)
    code = (
        "from polyolo.serving.cpus import usable_cpus; "
        "from polyolo.serving.memory import available; print(usable_cpus(), available() >> 20)"
    )
    outcome = run_job(
        [sys.executable, "-c", code],
        Confinement(cpus=1.0, memory_bytes=200 << 20),
        isolation,
        time_s=20,
    )
    cpus, megabytes = map(int, outcome.output.split())
    assert cpus == 1
    assert 100 < megabytes <= 200


def test_groups_of_a_platform_that_is_gone(isolation):
    """The next platform ends what is left in them and removes them, and leaves others alone."""
    needs(isolation, *CGROUPS)
    places, _ = find()
    mine = Groups(places).make(CGROUPS)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as orphan:
        left = []
        for base in {place.base for place in places.values()}:
            path = base / f"polyolo-{gone.pid}-1/x"
            path.mkdir(parents=True)
            left.append(path)
        (left[0] / "cgroup.procs").write_text(str(orphan.pid))
        Groups(places).sweep()
        assert orphan.wait(5) == -signal.SIGKILL
        assert not any(path.parent.exists() for path in left)
    assert all(path.exists() for path in mine.mounts)
    assert mine.remove()


def test_a_models_process_makes_nothing(tmp_path: Path):
    """Before it opens a model, it has given up making files but in its scratch directory."""
    from polyolo.sandbox import landlock

    if landlock.version() == 0:
        pytest.skip("no Landlock")
    code = """
import os, socket, sys
from polyolo.serving import worker
mine, other = socket.socketpair()
other.close()
try:
    worker.main([mine.detach()])  # nobody sends it a model
except EOFError:
    pass
for place in (os.environ["TMPDIR"], sys.argv[1]):
    try:
        open(place + "/file", "w").close()
        print("made")
    except PermissionError:
        print("refused")
"""
    scratch, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    for place in (scratch, elsewhere):
        place.mkdir()
    said = subprocess.run(
        [sys.executable, "-c", code, str(elsewhere)],
        env=os.environ | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.split() == ["made", "refused"], said.stderr


def doctor(*before: str, path: str | None = None) -> dict[str, dict[str, str]]:
    said = subprocess.run(
        [*before, POLYOLO, "doctor", "--here", "--json"],
        env=os.environ | ({"PATH": path} if path is not None else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return {layer["layer"]: layer for layer in json.loads(said.stdout)["layers"]}


def test_doctor_says_what_is_missing_and_why(tmp_path: Path):
    """Without bubblewrap: every namespace is missing, for that reason."""
    layers = doctor(path=str(tmp_path))
    assert len(layers) == len(Layer)
    assert layers["mount namespace"]["state"] == "missing"
    assert "bubblewrap is not installed" in layers["mount namespace"]["why"]


def test_an_ordinary_user_gets_namespaces_too(isolation):
    """Without root, what takes root is missing, and the sandbox holds all the same."""
    needs(isolation, *(layer for layer in Layer if layer.name in ("MOUNT", "PID", "USER")))
    user = ("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--uid", "1000", "--gid", "1000")
    layers = doctor(*user)
    assert layers["own user id"]["state"] == "not needed"
    on = {name for name, layer in layers.items() if layer["state"] == "on"}
    wanted = (Layer.MOUNT, Layer.PID, Layer.NETWORK, Layer.USER, Layer.SECCOMP, Layer.RLIMITS)
    assert set(wanted) <= on
