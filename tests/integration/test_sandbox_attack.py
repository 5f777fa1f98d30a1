"""An attacker in a runtime's sandbox: reaches nothing, and each layer is there for a reason."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polyolo.drivers.process import ProcessDriver
from polyolo.drivers.unixhttp import ask
from polyolo.sandbox.layers import CGROUPS, Isolation, Layer
from polyolo.sandbox.probe import probe
from polyolo.types import ModelSpec, Phase, Resources, RuntimeSpec, RuntimeStatus, VersionSpec

HERE = Path(__file__).parent
NEIGHBOUR = (sys.executable, str(HERE.parent / "contract/small_runtime.py"))
ATTACK = (sys.executable, str(HERE / "attack.py"))
BOMB = (sys.executable, str(HERE / "bomb.py"))
LIMITS = Resources(cpus=0.25, memory_bytes=96 << 20, processes=12)
_SEGMENT = 0x706F6C79
_CREATE, _REMOVE = 0o1666, 0  # IPC_CREAT and permissions for all; IPC_RMID


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    found = probe()
    if Layer.MOUNT not in found:
        pytest.skip(f"no namespaces here: {found.missing[Layer.MOUNT]}")
    yield found
    if found.groups is not None:
        found.groups.close()


@dataclass
class Scene:
    """A platform's home with a neighbour at work in it, and all that an attacker might want."""

    home: Path
    thieves: Path
    """Where attackers run; a driver ends all that is in its directory."""
    file: Path
    neighbours: ProcessDriver
    aim: dict[str, Any]

    def spec(self, tenant: str, resources: Resources = LIMITS) -> RuntimeSpec:
        version = VersionSpec(version=1, digest="a" * 64, uri=str(self.file))
        models = (ModelSpec(name="one", current=1, versions=(version,)),)
        return RuntimeSpec(
            tenant=tenant, generation=1, default_model="one", models=models, resources=resources
        )

    def attack(self, isolation: Isolation, *shares: str) -> dict[str, bool]:
        """Return what an attacker reached of all that it tried."""
        aim = json.dumps(self.aim | {"shares": shares})
        with self.thief(isolation, ATTACK, ATTACK=aim) as driver:
            return _report(self.thieves / "t_thief", driver)

    @contextmanager
    def thief(
        self, isolation: Isolation, program: Sequence[str], **environment: str
    ) -> Iterator[ProcessDriver]:
        """Start an attacker as a runtime among others; end it in the end."""
        driver = ProcessDriver(
            self.thieves, program, environment=environment, isolation=isolation, drain_s=0.1
        )
        try:
            driver.apply(self.spec("t_thief"))
            yield driver
        finally:
            driver.close()

    def answers(self) -> bool:
        """Say whether the neighbour answers."""
        directory = self.home / "run/t_victim"
        pid = json.loads((directory / "runtime.json").read_text())["pid"]
        path = directory / "io/runtime.sock"
        return ask(path, "GET", "/runtime/status", of=pid, timeout=5)[0] == 200


@pytest.fixture(scope="module")
def scene(isolation: Isolation) -> Iterator[Scene]:
    # Not pytest's tmp_path: its length would not leave room for the sockets' names.
    home = Path(tempfile.mkdtemp(prefix="polyolo-attack-"))
    libc = ctypes.CDLL(None)
    segment = libc.shmget(_SEGMENT, 4096, _CREATE)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        platform = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", "input()"],
                stdin=subprocess.PIPE,
                env={"SECRET": "ATTACK-SECRET"},
            )
        )
        stack.callback(libc.shmctl, segment, _REMOVE, None)
        for name in ("operator.key", "polyolo.db"):
            (home / name).write_text("secret")
        (home / "model").write_bytes(b"model")
        driver = ProcessDriver(home / "run", NEIGHBOUR, isolation=isolation)
        stack.callback(driver.close)
        for path in (home / "run/control.sock", "\0polyolo-attack"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        made = Scene(
            home=home, thieves=home / "run2", file=home / "model", neighbours=driver, aim={}
        )
        driver.apply(made.spec("t_victim", Resources()))
        _until(lambda: driver.observe()["t_victim"].phase is Phase.READY)
        made.aim |= {
            "home": str(home),
            "neighbour": str(home / "run/t_victim"),
            "pid": json.loads((home / "run/t_victim/runtime.json").read_text())["pid"],
            "platform": platform.pid,
            "marker": "small_runtime.py",
            "port": door.getsockname()[1],
            "abstract": "polyolo-attack",
            "segment": _SEGMENT,
            "host": os.uname().nodename,
            "user": os.geteuid(),
            "memory": LIMITS.memory_bytes,
            "processes": LIMITS.processes,
            "cpus": LIMITS.cpus,
        }
        yield made


def test_nothing_is_reached(scene: Scene, isolation: Isolation):
    """Files, sockets, processes, memory, network, the kernel, more than its share: 0 reached."""
    limited = {Layer.MEMORY: "memory", Layer.PROCESSES: "processes", Layer.CPU: "processor"}
    shares = ["disk", *(name for layer, name in limited.items() if layer in isolation)]
    found = scene.attack(isolation, *shares)
    assert len(found) == 47 + len(shares)
    reached = {name for name, worked in found.items() if worked}
    unprivileged = {"platforms_user"} if Layer.ACCOUNT not in isolation else set()
    assert reached == unprivileged
    assert scene.answers()


@pytest.mark.parametrize(
    ("off", "shares", "reached"),
    [
        # The platform's directories are closed to other users, so it takes two to see them.
        (
            (Layer.MOUNT, Layer.ACCOUNT),
            ("disk",),
            {"host_files", "disks", "neighbours_directory_is_there", "controls_socket", "disk"},
        ),
        (
            (Layer.MOUNT, Layer.ACCOUNT, Layer.LANDLOCK),
            (),
            {"operators_key", "database", "write_own_spec", "write_own_model", "write_package"},
        ),
        ((Layer.PID,), (), {"process_list"}),
        ((Layer.NETWORK,), (), {"interfaces"}),
        (
            (Layer.NETWORK, Layer.SECCOMP, Layer.LANDLOCK),
            (),
            {"gateway", "abstract_socket", "netlink"},
        ),
        ((Layer.IPC,), (), {"shared_memory"}),
        ((Layer.UTS,), (), {"host_name"}),
        ((Layer.USER, Layer.ACCOUNT), (), {"users"}),
        ((Layer.ACCOUNT,), (), {"platforms_user"}),
        (
            (Layer.SECCOMP,),
            (),
            {"io_uring", "userfaultfd", "keyring", "new_namespaces", "trace", "netlink"},
        ),
        (
            (Layer.LANDLOCK,),
            (),
            {"file_among_sockets", "lead_the_gateway_astray", "run_what_was_written"},
        ),
        ((Layer.RLIMITS,), (), {"too_many_descriptors", "core_dump"}),
        ((Layer.MEMORY,), ("memory",), {"memory"}),
        ((Layer.PROCESSES, Layer.RLIMITS), ("processes",), {"processes"}),
        ((Layer.CPU,), ("processor",), {"processor"}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_each_layer_is_there_for_a_reason(
    scene: Scene,
    isolation: Isolation,
    off: tuple[Layer, ...],
    shares: tuple[str, ...],
    reached: set[str],
):
    """Without a layer, the same attacker reaches what that layer guards."""
    for layer in off:
        if layer not in isolation:
            pytest.skip(f"{layer} is not here: {isolation.missing[layer]}")
    found = scene.attack(isolation.without(off), *shares)
    assert reached <= {name for name, worked in found.items() if worked}


@pytest.mark.parametrize("bomb", ["forks", "takes_memory", "writes", "spins"])
def test_what_has_no_end_is_stopped(scene: Scene, isolation: Isolation, bomb: str):
    """A bomb comes to its limit, a neighbour goes on answering, and what it did is cleaned up."""
    for layer in CGROUPS:
        if layer not in isolation:
            pytest.skip(f"{layer} is not here: {isolation.missing[layer]}")
    directory = scene.thieves / "t_thief"
    with scene.thief(isolation, BOMB, BOMB=bomb) as driver:
        end = time.monotonic() + 1.0
        answers = 0
        while time.monotonic() < end:
            answers += scene.answers()
        assert answers > 0
        if bomb == "takes_memory":
            status = _until(lambda: _failed(driver))
            assert status.reason == "it was ended at its limit on memory"
        if bomb == "forks":
            assert len(_processes_of(BOMB[1])) <= LIMITS.processes
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        assert size < 40 << 20
    assert not directory.exists()
    _until(lambda: not _processes_of(BOMB[1]))
    assert scene.answers()


def _failed(driver: ProcessDriver) -> RuntimeStatus | None:
    status = driver.observe(["t_thief"])["t_thief"]
    return status if status.phase is Phase.FAILED else None


def _processes_of(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if word in line and "bwrap" not in line:
                found.append(line)
    return found


def _report(directory: Path, driver: ProcessDriver) -> dict[str, bool]:
    log = directory / "log"

    def said() -> str:
        status = driver.observe(["t_thief"]).get("t_thief")
        text = log.read_text() if log.exists() else ""
        assert status is None or status.phase is not Phase.FAILED, f"{status} {text}"
        return next((line[7:] for line in text.splitlines() if line.startswith("REPORT ")), "")

    return json.loads(_until(said))


def _until(look, within: float = 30.0):
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return seen
