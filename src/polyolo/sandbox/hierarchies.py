"""Finds where this process may make control groups, in version 1 or 2, or why it may not."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyolo.sandbox.layers import Layer

_CONTROLLERS = {Layer.MEMORY: "memory", Layer.PROCESSES: "pids", Layer.CPU: "cpu"}
_FILES = {
    Layer.MEMORY: ("memory.max", "memory.limit_in_bytes"),
    Layer.PROCESSES: ("pids.max",),
    Layer.CPU: ("cpu.max", "cpu.cfs_quota_us"),
}
"""What sets a limit, in version 2 and 1."""
_LEAF = "polyolo-platform"
"""Where the platform goes itself: in version 2, a group with limited groups holds no process."""
_OWN = (
    "start the platform in a cgroup of its own: "
    "systemd-run --user --scope -p Delegate=yes polyolo up"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """Where the groups of one controller are made."""

    mount: Path
    base: Path
    """The group that they are made in."""
    unified: bool
    """Whether it is version 2, where one hierarchy is for all controllers."""

    @property
    def home(self) -> Path:
        """The group that this process was found in, or put in by `find`."""
        leaf = self.base / _LEAF
        return leaf if self.unified and leaf.exists() else self.base

    def hand_down(self, group: Path) -> None:
        """Let the groups within a group be limited. Raises OSError."""
        if not self.unified:
            return
        control = group / "cgroup.subtree_control"
        there, given = _words(group / "cgroup.controllers"), _words(control)
        for name in _CONTROLLERS.values():
            if name in there and name not in given:
                control.write_text(f"+{name}")


def find(process: Path = Path("/proc/self")) -> tuple[dict[Layer, Hierarchy], dict[Layer, str]]:
    """Return where each layer's groups can be made, and for the others why they cannot.

    In version 2, this process moves into a group within its own, if nobody else is in that.
    process: where the kernel tells of this process.
    """
    found: dict[Layer, Hierarchy] = {}
    missing: dict[Layer, str] = {}
    try:
        mounts, groups = _told(process)
    except OSError as error:
        return {}, dict.fromkeys(_CONTROLLERS, f"the kernel does not tell: {error.strerror}")
    for layer, controller in _CONTROLLERS.items():
        place = _place(controller, groups, mounts)
        if place is None:
            missing[layer] = f"this host gives the platform no cgroup controller {controller}"
            continue
        try:
            _try(place, _FILES[layer])
            found[layer] = place
        except OSError as error:
            missing[layer] = _said(error, place)
    return found, missing


def accounts(process: Path = Path("/proc/self")) -> Hierarchy | None:
    """Return where groups must be besides, for their processor time to be counted.

    None: nowhere, since version 2 counts it for every group, or because this process may not.
    """
    with suppress(OSError):
        mounts, groups = _told(process)
        place = _place("cpuacct", groups, mounts)
        if place is not None and not place.unified:
            _try(place, ("cpuacct.usage",))
            return place
    return None


def _told(process: Path) -> tuple[Sequence[_Mount], Sequence[Sequence[str]]]:
    """Return what is mounted, and the process's groups as the kernel lists them."""
    mounts = [_Mount.read(line) for line in (process / "mountinfo").read_text().splitlines()]
    return mounts, [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class _Mount:
    root: Path
    at: Path
    kind: str
    options: frozenset[str]

    @classmethod
    def read(cls, line: str) -> _Mount:
        """Read a line of mountinfo (proc_pid_mountinfo(5))."""
        before, _, after = line.partition(" - ")
        words, (kind, _, options) = before.split(), after.split()[:3]
        return cls(Path(words[3]), Path(words[4]), kind, frozenset(options.split(",")))


def _place(
    controller: str, groups: Sequence[Sequence[str]], mounts: Sequence[_Mount]
) -> Hierarchy | None:
    """Return the group of this process, for one controller."""
    for _, controllers, path in groups:
        if controllers and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.kind != ("cgroup" if controllers else "cgroup2") or (
                controllers and controller not in mount.options
            ):
                continue
            # A container may see a part of the tree only, with that part's root as the mount.
            if not Path(path).is_relative_to(mount.root):
                continue
            base = mount.at / Path(path).relative_to(mount.root)
            place = Hierarchy(
                mount=mount.at,
                base=base.parent if base.name == _LEAF else base,
                unified=not controllers,
            )
            if controllers or controller in _words(place.base / "cgroup.controllers"):
                return place
    return None


def _try(place: Hierarchy, files: Sequence[str]) -> None:
    """Make a group, see that it can be limited, and remove it. Raises OSError."""
    try:
        place.hand_down(place.base)
    except OSError as error:
        if error.errno != errno.EBUSY or _words(place.base / "cgroup.procs") != [str(os.getpid())]:
            raise
        leaf = place.base / _LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        place.hand_down(place.base)
    trial = place.base / f"polyolo-trial-{os.getpid()}"
    trial.mkdir(exist_ok=True)
    try:
        if not any(os.access(trial / file, os.W_OK) for file in files):
            raise PermissionError(errno.EACCES, "its limits cannot be written", str(trial))
    finally:
        trial.rmdir()


def _said(error: OSError, place: Hierarchy) -> str:
    if error.errno == errno.EBUSY:
        return f"other processes are in the platform's cgroup {place.base}; {_OWN}"
    if error.errno == errno.EROFS:
        return f"{place.mount} is mounted read-only"
    hint = f"; {_OWN}" if place.unified else ""
    return f"the platform may not make cgroups in {place.base} ({error.strerror}){hint}"


def _words(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text().split()
    return []
