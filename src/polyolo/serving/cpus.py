"""Counts the CPUs that this process may really use: affinity and cgroup quota, not the host's."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus(
    memberships: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many CPUs this process can keep busy, at least 1.

    The lesser of the affinity mask and the cgroup's CPU quota (v1 and v2), a part of a CPU
    counting as one. memberships, root: where the kernel tells of the cgroups.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(memberships, root):
        cpus = min(cpus, math.ceil(quota))
    return max(1, cpus)


def _quotas(memberships: Path, root: Path) -> list[float]:
    """Return the quotas, in CPUs, of this process's cgroup and of every one above it."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return []  # not Linux, or /proc is hidden: affinity alone has to do
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2's only line
            mount = root
        elif "cpu" in controllers.split(","):
            mount = root / "cpu"
        else:
            continue
        # Inside a container the mount's root may be the cgroup itself, so that the path from
        # the host is not there: every level that exists is asked, the root included.
        below = Path(path.lstrip("/"))
        for level in (below, *below.parents):
            quota = _quota(mount / level)
            if quota is not None:
                quotas.append(quota)
    return quotas


def _quota(group: Path) -> float | None:
    """Return one cgroup's own quota in CPUs; None when it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # absent, or "max"
        return None
