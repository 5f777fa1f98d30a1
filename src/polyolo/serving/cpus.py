"""Counts the CPUs that this process may really use: affinity and cgroup quota, not the host's."""

from __future__ import annotations

import math
import os
from pathlib import Path

from polyolo.serving.cgroups import MEMBERSHIPS, ROOT, bounding


def usable_cpus(memberships: Path = MEMBERSHIPS, root: Path = ROOT) -> int:
    """Return how many CPUs this process can keep busy, at least 1.

    The lesser of the affinity mask and the cgroup's CPU quota (v1 and v2), a part of a CPU
    counting as one. memberships, root: see cgroups.bounding.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in bounding("cpu", memberships, root):
        quota = _quota(group)
        if quota is not None:
            cpus = min(cpus, math.ceil(quota))
    return max(1, cpus)


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
