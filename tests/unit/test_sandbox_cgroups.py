"""Control groups on paper: both versions, as a kernel would show them in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyolo.sandbox.cgroups import Group
from polyolo.sandbox.hierarchies import accounts, find
from polyolo.sandbox.layers import Layer

OLD = "36 31 0:30 {root} {at} rw,relatime shared:9 - cgroup cgroup rw,{controller}\n"
NEW = "29 23 0:26 {root} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def process(tmp_path: Path) -> Path:
    made = tmp_path / "proc"
    made.mkdir()
    return made


def show(process: Path, mounts: str, groups: str) -> None:
    (process / "mountinfo").write_text(mounts)
    (process / "cgroup").write_text(groups)


def test_no_cgroups(process: Path):
    """Nothing is mounted: each layer is missing, and why is said."""
    show(process, "", "")
    found, missing = find(process)
    assert found == {}
    assert set(missing) == {Layer.MEMORY, Layer.PROCESSES, Layer.CPU}
    assert "no cgroup controller memory" in missing[Layer.MEMORY]
    assert "does not tell" in find(process / "missing")[1][Layer.CPU]


def test_a_controller_that_is_not_handed_down(process: Path, tmp_path: Path):
    """Version 2 without the cpu controller: only that one is not there."""
    base = tmp_path / "fs/user.slice"
    base.mkdir(parents=True)
    (base / "cgroup.controllers").write_text("memory pids\n")
    (base / "cgroup.subtree_control").write_text("memory pids\n")
    show(process, NEW.format(root="/", at=tmp_path / "fs"), "0::/user.slice\n")
    _, missing = find(process)
    assert "no cgroup controller cpu" in missing[Layer.CPU]
    # A kernel would fill the trial's directory with files; here its limits cannot be written.
    assert "systemd-run --user --scope" in missing[Layer.MEMORY]
    assert list(base.glob("polyolo-*")) == []


@pytest.mark.parametrize(
    ("root", "path"), [("/", "/docker/abc"), ("/docker/abc", "/docker/abc"), ("/", "/")]
)
def test_where_the_groups_of_version_1_are_made(process: Path, tmp_path: Path, root, path):
    """Beneath the platform's own group, also where a container sees a part of the tree only."""
    places = {}
    mounts = ""
    for controller in ("memory", "pids", "cpu"):
        at = tmp_path / controller
        places[controller] = at / Path(path).relative_to(root)
        places[controller].mkdir(parents=True, exist_ok=True)
        mounts += OLD.format(root=root, at=at, controller=controller)
    show(process, mounts, f"9:name=systemd:/x\n4:memory:{path}\n3:pids:{path}\n1:cpu,x:{path}\n")
    _, missing = find(process)
    assert str(places["memory"]) in missing[Layer.MEMORY]
    assert str(places["cpu"]) in missing[Layer.CPU]


def group(path: Path, *files: str) -> Group:
    path.mkdir()
    for name in files:
        (path / name).write_text("")
    layers = (Layer.MEMORY, Layer.PROCESSES, Layer.CPU)
    return Group(dict.fromkeys(layers, path), {path: Path("/sys/fs/cgroup")})


def test_limits_of_version_2(tmp_path: Path):
    """Memory without swap, processes, and a share of each period of 100 ms."""
    path = tmp_path / "g"
    made = group(path, "memory.max", "memory.swap.max", "pids.max", "cpu.max")
    made.limit(memory_bytes=1000, processes=7, cpus=1.5)
    assert {file.name: file.read_text() for file in path.iterdir()} == {
        "memory.max": "1000",
        "memory.swap.max": "0",
        "pids.max": "7",
        "cpu.max": "150000 100000",
    }
    (path / "cpu.max").write_text("")
    made.limit(memory_bytes=1000, processes=7, cpus=0)
    assert (path / "cpu.max").read_text() == "max 100000"
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n")
    assert made.killed_for_memory() == 2


def test_limits_of_version_1(tmp_path: Path):
    """The same in other files; what has no limit is -1 there."""
    path = tmp_path / "g"
    made = group(path, "memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us")
    made.limit(memory_bytes=1000, processes=7, cpus=0)
    assert {file.name: file.read_text() for file in path.iterdir()} == {
        "memory.limit_in_bytes": "1000",
        "pids.max": "7",
        "cpu.cfs_quota_us": "-1",
    }
    (path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert made.killed_for_memory() == 1


def test_weights_and_use_of_version_2(tmp_path: Path):
    """A weight of 1 is the kernel's 100, within its bounds; use is in cpu.stat."""
    path = tmp_path / "g"
    made = group(path, "cpu.weight", "cgroup.procs")
    for weight, written in ((16.0, "1600"), (1.0, "100"), (0.001, "1"), (1000.0, "10000")):
        made.weigh(weight)
        assert (path / "cpu.weight").read_text() == written
    (path / "cpu.idle").write_text("0")
    made.weigh(16.0, yields=True)  # a group that yields takes no weight
    assert (path / "cpu.idle").read_text() == "1"
    assert (path / "cpu.weight").read_text() == "10000"
    made.weigh(16.0)
    assert (path / "cpu.idle").read_text() == "0"
    assert (path / "cpu.weight").read_text() == "1600"
    assert made.used_s() is None
    (path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n")
    assert made.used_s() == 1.5
    made.add(42)
    assert (path / "cgroup.procs").read_text() == "42"


def test_weights_and_use_of_version_1(tmp_path: Path):
    """A weight of 1 is 1024 shares there; use is counted in a hierarchy of its own."""
    cpu, counted = tmp_path / "cpu", tmp_path / "cpuacct"
    cpu.mkdir()
    counted.mkdir()
    (cpu / "cpu.shares").write_text("1024")
    (cpu / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\n")
    made = Group({Layer.CPU: cpu}, {cpu: tmp_path, counted: tmp_path})
    made.weigh(16.0)
    assert (cpu / "cpu.shares").read_text() == "16384"
    assert made.used_s() is None
    (counted / "cpuacct.usage").write_text("2500000000\n")
    assert made.used_s() == 2.5


def test_where_use_is_counted(process: Path, tmp_path: Path):
    """In version 2 everywhere; in version 1 in its own hierarchy, where that may be used."""
    show(process, NEW.format(root="/", at=tmp_path), "0::/\n")
    assert accounts(process) is None
    mounts = OLD.format(root="/", at=tmp_path / "acct", controller="cpuacct")
    show(process, mounts, "2:cpuacct:/x\n")
    assert accounts(process) is None  # a group there cannot be made
    assert accounts(process / "missing") is None
