"""Finds the cgroups that bound this process: what a container may use is written there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def bounding(controller: str, memberships: Path = MEMBERSHIPS, root: Path = ROOT) -> Iterator[Path]:
    """Yield the directories of this process's cgroup and of every one above it (v1 and v2).

    controller: as v1 calls it: cpu, memory. memberships, root: where the kernel tells of the
    cgroups. A directory yielded need not exist.
    """
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return  # not Linux, or /proc is hidden
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2's only line
            mount = root
        elif controller in controllers.split(","):
            mount = root / controller
        else:
            continue
        # Inside a container the mount's root may be the cgroup itself, so that the path from
        # the host is not there: every level that exists is asked, the root included.
        below = Path(path.lstrip("/"))
        yield from (mount / level for level in (below, *below.parents))
