"""Knows how much memory is left here, and whether one more model's process fits into it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyolo.errors import NotReadyError
from polyolo.serving.cgroups import MEMBERSHIPS, ROOT, bounding

_PROC = Path("/proc")

_MIB = 2**20

_PROCESS_BYTES = 64 * _MIB
"""What a process with the smallest model adds: Python, numpy, OpenCV and ONNX Runtime; 62 MiB
measured (PSS), 82 MiB with YOLOX-Nano."""
_COPIES = 3
"""Of the file while it is opened: its bytes, what the engine parses, what it keeps."""


def available(proc: Path = _PROC, memberships: Path = MEMBERSHIPS, root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still take; None where the system does not say.

    The lesser of what the machine has and what the cgroups (v1 and v2) leave, page cache that
    can be dropped counting as free. proc: where the kernel tells of memory; memberships, root:
    see cgroups.bounding.
    """
    rooms = [_machine(proc), *(_room(group) for group in bounding("memory", memberships, root))]
    return min((max(0, room) for room in rooms if room is not None), default=None)


def own(pid: int, proc: Path = _PROC) -> int:
    """Return the bytes that a process keeps for itself, shared libraries and files left out.

    0 for a process that is gone.
    """
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def stopped(memberships: Path = MEMBERSHIPS, root: Path = ROOT) -> int:
    """Return how many processes the kernel has ended at this cgroup's limit on memory (v1, v2).

    memberships, root: see cgroups.bounding.
    """
    for group in bounding("memory", memberships, root):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                pairs = [line.split() for line in (group / name).read_text().splitlines()]
                return next((int(pair[1]) for pair in pairs if pair[0] == "oom_kill"), 0)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What opening a model takes, and what is left for it; bytes."""

    needed: int = 0
    left: int | None = None
    """None where unknown."""

    @property
    def short(self) -> bool:
        """Whether it does not fit."""
        return self.left is not None and self.needed > self.left

    def refusal(self) -> NotReadyError:
        """Return the error for a model that does not fit beside those that are loaded."""
        needed, left = self.needed / _MIB, max(0, self.left or 0) / _MIB
        return NotReadyError(
            f"opening it beside the models in service takes about {needed:.0f} MiB and {left:.0f} "
            "MiB are left: give the runtime more memory, or delete other models"
        )


def room(file: Path, known: int, limit: int, pids: Iterable[int], proc: Path = _PROC) -> Room:
    """Return what opening a model's file takes, and what is left here.

    known: bytes that it was seen to take, or that the version takes whose place it will have; 0
    where neither is known. limit: bytes for all processes of the runtime, 0 for no limit. pids:
    its processes. A file that is not there takes nothing: opening it says so.
    """
    try:
        size = file.stat().st_size
    except OSError:
        return Room()
    left = available(proc)
    if limit:
        rest = limit - sum(own(pid, proc) for pid in pids)
        left = rest if left is None else min(left, rest)
    return Room(needed=max(_PROCESS_BYTES + _COPIES * size, known), left=left)


def _machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if "MemAvailable:" in line), None)


def _room(group: Path) -> int | None:
    """Return what one cgroup's own limit leaves; None when it has none."""
    v2 = (group / "memory.max").exists()
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        limit, used = (int((group / name).read_text()) for name in names[:2])
        stat = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # absent, or "max"
        return None
    cache = next((int(line.split()[1]) for line in stat if line.split()[0] == names[2]), 0)
    return limit - used + cache
