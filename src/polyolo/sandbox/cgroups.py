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


@dataclass(frozen=True, slots=True, eq=False)
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

    def weigh(self, weight: float, *, yields: bool = False) -> None:
        """Have it get this many times the processor time of a group of weight 1, where both want
        more than there is. It gets all of what nobody else wants. Raises OSError.

        yields: it stops at once for who does not yield, and runs on what they leave; among those
        that yield all weigh the same. Kernels before 5.15 go by the weight only.
        """
        if (path := self.directories.get(Layer.CPU)) is not None:
            with suppress(FileNotFoundError):
                _write(path / "cpu.idle", int(yields))
                if yields:  # it has no other weight then
                    return
            _weigh(path, weight)

    def used_s(self) -> float | None:
        """Return the seconds of processor time used so far; None where nobody counts them."""
        for path in self.mounts:
            with suppress(OSError):
                return int((path / "cpuacct.usage").read_text()) / 1e9
        for path in self.mounts:
            with suppress(OSError, StopIteration):
                lines = (path / "cpu.stat").read_text().splitlines()
                used = next(line for line in lines if line.startswith("usage_usec "))
                return int(used.split()[1]) / 1e6
        return None

    def add(self, pid: int) -> None:
        """Move a process into it; what it starts from now on is in it too. Raises OSError."""
        for path in self.mounts:
            _write(path / "cgroup.procs", pid)

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

    def __init__(
        self, hierarchies: Mapping[Layer, Hierarchy], accounts: Hierarchy | None = None
    ) -> None:
        """Make nothing yet. accounts: see `hierarchies.accounts`."""
        process = kernel.identify(os.getpid())
        self._hierarchies = hierarchies
        self._accounts = accounts
        self._own: Group | None = None
        self._name = f"polyolo-{process.pid}-{process.started}" if process else ""

    def make(self, layers: Collection[Layer]) -> Group:
        """Return a new group for these layers, without limits. Raises OSError."""
        wanted = {at: one for at, one in self._hierarchies.items() if at in layers}
        group = self._named(secrets.token_hex(4), wanted)
        for hierarchy in (*wanted.values(), *self._counting(wanted)):
            self._open(hierarchy)
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
                    mounts = {path: at for path, at in group.mounts.items() if path.exists()}
                    return Group(there, mounts)
        return None

    def _named(self, name: str, hierarchies: Mapping[Layer, Hierarchy]) -> Group:
        own = {layer: one.base / self._name / name for layer, one in hierarchies.items()}
        everywhere = (*hierarchies.values(), *self._counting(hierarchies))
        return Group(own, {one.base / self._name / name: one.mount for one in everywhere})

    def _counting(self, layers: Collection[Layer]) -> tuple[Hierarchy, ...]:
        """Return the hierarchy that counts processor time, where it is one of its own."""
        if Layer.CPU not in layers or self._accounts is None:
            return ()
        return (self._accounts,)

    def _open(self, hierarchy: Hierarchy) -> None:
        """Make the group that all groups in a hierarchy are made in, where it is not there yet."""
        parent = hierarchy.base / self._name
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            # One process for each core; it would have the weight of one.
            _weigh(parent, os.cpu_count() or 1)
        hierarchy.hand_down(parent)

    def _everywhere(self) -> list[Hierarchy]:
        return [*self._hierarchies.values(), *self._counting(self._hierarchies)]

    def _bases(self) -> set[Path]:
        return {hierarchy.base for hierarchy in self._everywhere()}

    def join(self) -> None:
        """Move this process into a group among the others, with a weight of 1, until `close`.
        Raises OSError."""
        self._own = self.make([Layer.CPU])
        self._own.add(os.getpid())

    def sweep(self) -> None:
        """Remove the groups of platforms that are gone, with what still runs in them."""
        for base in self._bases():
            for path in base.glob("polyolo-*-*"):
                if not _needed(path.name):
                    for below in _directories(path):
                        _remove(below)
                    _remove(path)

    def close(self) -> None:
        """Remove what holds this process's groups, unless there are some in it still."""
        if self._own is not None:
            for hierarchy in self._everywhere():
                with suppress(OSError):
                    _write(hierarchy.home / "cgroup.procs", os.getpid())
            for path in self._own.mounts:
                with suppress(OSError):
                    path.rmdir()  # nothing more: `remove` would end this process
        for base in self._bases():
            holding = base / self._name
            if not list(_directories(holding)):
                _remove(holding)  # not at once: the kernel takes leave of groups in it later


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


def _weigh(path: Path, weight: float) -> None:
    # In both versions, what a group has that nobody gave a weight is a weight of 1.
    for name, one, least, most in (
        ("cpu.weight", 100, 1, 10_000),
        ("cpu.shares", 1024, 2, 1 << 18),
    ):
        with suppress(FileNotFoundError):
            _write(path / name, min(max(round(one * weight), least), most))


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
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
