"""Knows how much memory is left here, and whether one more model's process fits into it."""

from __future__ import annotations

import os
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


def resident(pid: int, proc: Path = _PROC) -> int:
    """Return the bytes that a process keeps in memory; 0 for one that is gone."""
    try:
        pages = int((proc / str(pid) / "statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def refuse_unless_room(file: Path, beside: int, left: int | None) -> None:
    """Raise NotReadyError when opening a model beside another would not fit into memory.

    file: the new model's. beside: bytes that the one to be replaced takes. left: bytes
    available, None where unknown. A file that is not there takes nothing: opening it says so.
    """
    try:
        size = file.stat().st_size
    except OSError:
        return
    needed = max(_PROCESS_BYTES + _COPIES * size, beside)
    if left is not None and needed > left:
        raise NotReadyError(
            f"opening it beside the version in service takes about {needed / _MIB:.0f} MiB and "
            f"{left / _MIB:.0f} MiB are left: give the runtime more memory, or unload other models"
        )


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
