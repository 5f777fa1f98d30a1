"""Control groups, version 1 and 2: what a process and all that it starts may use together.

The platform makes its groups beneath its own, as `polyolo-PID-STARTED/NUMBER`: named after the
process that made them, so that the next platform knows which ones nobody needs any more.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyolo.sandbox import kernel
from polyolo.sandbox.hierarchies import Hierarchy
from polyolo.sandbox.layers import Layer

_PERIOD_US = 100_000
_GONE_S = 2.0
"""Seconds that the kernel is given to end the processes of a group."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group, in every hierarchy that there is, until `remove`. Any thread."""

    directories: Mapping[Layer, Path]
    mounts: Mapping[Path, Path]
    """Of each directory, where its hierarchy is mounted: in a cgroup namespace of its own, a
    process looks for its own group there."""

    def limit(self, *, memory_bytes: int, processes: int, cpus: float) -> None:
        """Set what may be used, from now on. cpus: 0 for whatever is free. Raises OSError."""
        quota = int(cpus * _PERIOD_US)
        for layer, path in self.directories.items():
            if layer is Layer.PROCESSES:
                _write(path / "pids.max", processes)
            elif layer is Layer.MEMORY:
                _limit_memory(path, memory_bytes)
            elif (path / "cpu.max").exists():
                _write(path / "cpu.max", f"{quota or 'max'} {_PERIOD_US}")
            else:
                _write(path / "cpu.cfs_quota_us", quota or -1)

    def killed_for_memory(self) -> int:
        """Return how many of its processes the kernel has ended at the limit on memory."""
        if (path := self.directories.get(Layer.MEMORY)) is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                words = [line.split() for line in (path / name).read_text().splitlines()]
                return next((int(pair[1]) for pair in words if pair[0] == "oom_kill"), 0)
        return 0

    def remove(self) -> bool:
        """End what is still in it, and remove it; say whether it is gone. Takes up to 2 s."""
        gone = [_remove(path) for path in self.mounts]
        return all(gone)


class Groups:
    """Where this process makes groups. Any thread."""

    def __init__(self, hierarchies: Mapping[Layer, Hierarchy]) -> None:
        """Make nothing yet."""
        process = kernel.identify(os.getpid())
        self._hierarchies = hierarchies
        self._name = f"polyolo-{process.pid}-{process.started}" if process else ""

    def make(self, layers: Collection[Layer]) -> Group:
        """Return a new group for these layers, without limits. Raises OSError."""
        wanted = {at: one for at, one in self._hierarchies.items() if at in layers}
        for hierarchy in wanted.values():
            parent = hierarchy.base / self._name
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                _weigh(parent)
            hierarchy.hand_down(parent)
        group = self._named(secrets.token_hex(4), wanted)
        for path in group.mounts:
            path.mkdir()
        return group

    def of(self, pid: int) -> Group | None:
        """Return the group that this process, or what it was before, has made for another one."""
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                parent, name = Path(line).parent.name, Path(line).name
                if parent == self._name:
                    group = self._named(name, self._hierarchies)
                    there = {at: path for at, path in group.directories.items() if path.exists()}
                    mounts = {path: group.mounts[path] for path in there.values()}
                    return Group(there, mounts)
        return None

    def _named(self, name: str, hierarchies: Mapping[Layer, Hierarchy]) -> Group:
        own = {layer: one.base / self._name / name for layer, one in hierarchies.items()}
        return Group(own, {own[layer]: one.mount for layer, one in hierarchies.items()})

    def sweep(self) -> None:
        """Remove the groups of platforms that are gone, with what still runs in them."""
        for base in {hierarchy.base for hierarchy in self._hierarchies.values()}:
            for path in base.glob("polyolo-*-*"):
                if not _needed(path.name):
                    for below in _directories(path):
                        _remove(below)
                    _remove(path)

    def close(self) -> None:
        """Remove what holds the groups, once they are removed; not while anything runs in one."""
        for base in {hierarchy.base for hierarchy in self._hierarchies.values()}:
            if any(_members(group) for group in _directories(base / self._name)):
                return
            _remove(base / self._name)  # not at once: the kernel takes leave of groups in it later


def _needed(name: str) -> bool:
    """Say whether the process that a name means still runs."""
    _, pid, started = name.split("-", 2)
    if not (pid.isdigit() and started.isdigit()):
        return True  # not a name of ours
    return kernel.runs(kernel.Identity(pid=int(pid), started=int(started)))


def _limit_memory(path: Path, most: int) -> None:
    if (path / "memory.max").exists():
        _write(path / "memory.max", most)
        with suppress(FileNotFoundError):  # a kernel without swap
            _write(path / "memory.swap.max", 0)
        return
    both = [path / "memory.limit_in_bytes", path / "memory.memsw.limit_in_bytes"]
    files = [file for file in both if file.exists()]
    try:
        for file in files:
            _write(file, most)
    except OSError:  # the first may never be above the second: on the way up, the second first
        for file in reversed(files):
            _write(file, most)


def _weigh(parent: Path) -> None:
    """Give the groups together the weight of one process for each core; they had that of one."""
    cores = os.cpu_count() or 1
    for name, weight in (("cpu.weight", min(100 * cores, 10_000)), ("cpu.shares", 1024 * cores)):
        with suppress(FileNotFoundError):
            _write(parent / name, weight)


def _remove(path: Path) -> bool:
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            for pid in _members(path):
                _end(pid, path, deadline)
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return False
            time.sleep(0.001)  # version 1 tells nobody when the last one has left
        else:
            return True


def _members(path: Path) -> set[int]:
    return set(map(int, (path / "cgroup.procs").read_text().split())) - {0}


def _end(pid: int, path: Path, deadline: float) -> None:
    """Kill a process, held by a descriptor so that it is a member and no other."""
    process = kernel.identify(pid)
    if process is not None and pid in _members(path):
        kernel.send(process, signal.SIGKILL, wait_s=max(0.0, deadline - time.monotonic()))


def _directories(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from [entry for entry in path.iterdir() if entry.is_dir()]


def _write(file: Path, value: object) -> None:
    # Not write_text: it would first ask for the file to be made.
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
