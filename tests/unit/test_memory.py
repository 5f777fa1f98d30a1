"""Memory: the least of what the machine and each cgroup leave, and a sentence where it is short."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from polyolo.serving.memory import Room, available, own, room, stopped

MIB = 2**20
MEMINFO = f"MemTotal: {8 * MIB} kB\nMemFree: 1 kB\nMemAvailable: {1000 * 1024} kB\n"


def left(tmp_path: Path, membership: str, files: dict[str, str]) -> int | None:
    """Return available(), in MiB, on a machine with 1000 MiB left and these cgroup files."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = available(tmp_path, tmp_path / "cgroup", tmp_path / "fs")
    return None if found is None else found // MIB


def v2(group: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"{group}/memory.max": limit,
        f"{group}/memory.current": f"{used * MIB}\n",
        f"{group}/memory.stat": f"anon 1\nfile 2\ninactive_file {cache * MIB}\nslab 3\n",
    }


def v1(group: str, limit: int, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"memory/{group}/memory.limit_in_bytes": f"{limit}\n",
        f"memory/{group}/memory.usage_in_bytes": f"{used * MIB}\n",
        f"memory/{group}/memory.stat": f"inactive_file 0\ntotal_inactive_file {cache * MIB}\n",
    }


@pytest.mark.parametrize(
    ("membership", "files", "mib"),
    [
        ("0::/a\n", {}, 1000),
        ("0::/a\n", v2("a", "max\n", 5), 1000),
        ("0::/a\n", v2("a", f"{512 * MIB}\n", 300), 212),
        ("0::/a\n", v2("a", f"{512 * MIB}\n", 500, cache=100), 112),
        ("0::/a\n", v2("a", f"{512 * MIB}\n", 600), 0),
        ("0::/a/b\n", v2("a/b", "max\n", 5) | v2("a", f"{256 * MIB}\n", 200), 56),
        ("0::/seen/from/the/host\n", v2(".", f"{256 * MIB}\n", 200), 56),
        ("5:cpu:/a\n4:memory:/a\n", v1("a", 512 * MIB, 300, cache=10), 222),
        ("4:memory:/a\n", v1("a", 2**63 - 4096, 300), 1000),
        ("4:cpu:/a\n", v1("a", 512 * MIB, 300), 1000),
    ],
)
def test_the_tightest_bound_counts(tmp_path: Path, membership: str, files: dict, mib: int):
    """The machine's MemAvailable or any cgroup's rest, the cache that can be dropped included."""
    assert left(tmp_path, membership, files) == mib


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path):
    """No /proc and no cgroups: unknown, which refuses nothing."""
    assert available(tmp_path, tmp_path / "cgroup", tmp_path) is None
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(100))
    assert not room(file, 10**12, 0, [], tmp_path).short


def test_this_machine_tells_of_itself():
    """On Linux there is a number, and this process takes some of it."""
    if not Path("/proc/meminfo").exists():
        pytest.skip("needs Linux")
    assert available() is not None
    assert 5 * MIB < own(os.getpid()) < 10**12
    assert own(2**22 + 1) == 0


def test_a_model_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path):
    """By what it was seen to take or by its file, whichever is larger; both figures are named."""
    file = tmp_path / "model.onnx"
    with file.open("wb") as sparse:
        sparse.truncate(100 * MIB)
    (tmp_path / "meminfo").write_text("MemAvailable: 409600 kB\n")  # 400 MiB

    def found(known: int, limit: int = 0, pids: Sequence[int] = ()) -> Room:
        return room(file, known * MIB, limit * MIB, pids, tmp_path)

    assert not found(0).short
    assert not found(390).short
    for known, said in ((500, "takes about 500 MiB and 400 MiB are left: give"),):
        assert found(known).short
        assert said in found(known).refusal().detail
    assert "takes about 364 MiB and 300 MiB are left" in found(0, 300).refusal().detail
    assert not room(tmp_path / "absent", 500 * MIB, 0, [], tmp_path).short


def test_what_the_runtimes_own_processes_take_counts_against_its_limit(tmp_path: Path):
    """Their own pages, not the libraries that they share; less than nothing may be left."""
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(100))
    (tmp_path / "meminfo").write_text("MemAvailable: 409600 kB\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(
        "VmRSS: 999999 kB\nRssAnon: 102400 kB\nRssFile: 51200 kB\nRssShmem: 1024 kB\n"
    )
    assert own(7, tmp_path) == 101 * MIB
    assert not room(file, 0, 300 * MIB, [7, 8], tmp_path).short
    assert room(file, 0, 150 * MIB, [7], tmp_path).left == 49 * MIB
    assert room(file, 0, 150 * MIB, [7], tmp_path).short


@pytest.mark.parametrize(
    ("membership", "file", "content"),
    [
        ("0::/a\n", "a/memory.events", "max 9\noom 3\noom_kill 2\n"),
        ("0::/\n", "memory.events", "oom_kill 2\n"),
        ("4:memory:/a\n", "memory/a/memory.oom_control", "oom_kill_disable 0\noom_kill 2\n"),
    ],
)
def test_processes_ended_for_memory_are_counted(
    tmp_path: Path, membership: str, file: str, content: str
):
    """As the nearest cgroup tells; none where there is no limit."""
    (tmp_path / "cgroup").write_text(membership)
    assert stopped(tmp_path / "cgroup", tmp_path / "fs") == 0
    (tmp_path / "fs" / file).parent.mkdir(parents=True)
    (tmp_path / "fs" / file).write_text(content)
    assert stopped(tmp_path / "cgroup", tmp_path / "fs") == 2
