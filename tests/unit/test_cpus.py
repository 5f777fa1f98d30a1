"""Counting CPUs: quotas of both cgroup versions, at every level, never less than one."""

import os
from pathlib import Path

import pytest

from polyolo.serving.cpus import usable_cpus

ALL = len(os.sched_getaffinity(0))


def cgroups(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    """Return usable_cpus() in a world of these files."""
    (tmp_path / "cgroup").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_cpus(tmp_path / "cgroup", tmp_path / "fs")


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, ALL),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/host/path\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "110000 100000\n"}, min(ALL, 2)),
        ("0::/a\n", {"a/cpu.max": "99900000 100000\n"}, ALL),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"},
            1,
        ),
        (
            "4:cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            ALL,
        ),
        ("4:memory:/a\n", {"a/cpu.max": "100000 100000\n"}, ALL),
    ],
)
def test_a_quota_limits_the_streams(tmp_path: Path, membership: str, files: dict, cpus: int):
    """The least quota of the process's cgroup and those above it, rounded up."""
    assert cgroups(tmp_path, membership, files) == cpus


def test_without_cgroups_affinity_counts(tmp_path: Path):
    """Where the kernel tells nothing of cgroups, the affinity mask does."""
    assert usable_cpus(tmp_path / "none", tmp_path) == ALL
