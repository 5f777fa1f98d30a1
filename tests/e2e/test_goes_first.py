"""Who goes first on the processor, of the processes of a whole platform."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.platform import Platform, eventually, processes_below


def groups(pid: int) -> list[Path]:
    """Return the control groups of a process that bear the platform's name."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        path = line.split(":", 2)[2]
        if "/polyolo-" in path:
            found += [
                mount / path.lstrip("/")
                for mount in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir())
                if (mount / path.lstrip("/")).is_dir()
            ]
    return found


def weight(pid: int) -> int:
    for group in groups(pid):
        for name in ("cpu.weight", "cpu.shares"):
            if (group / name).exists():
                return int((group / name).read_text())
    pytest.skip("this host gives the platform no control groups")


def doors(platform: Platform) -> set[int]:
    """Return the pids of the gateways."""
    return {pid for pid, line in processes_below(platform.home) if "polyolo.gateway" in line}


def test_the_gateway_goes_first_and_nothing_is_left(fresh_platform):
    """It weighs more than the platform, which is among its own groups; all are gone with it."""
    platform = fresh_platform
    platform.start()
    assert platform.process is not None
    (door,) = doors(platform)
    assert weight(door) >= 16 * weight(platform.process.pid)
    made = groups(door) + groups(platform.process.pid)
    assert len({group.name for group in made}) == 2
    assert platform.stop() == 0
    assert not [group for group in made if group.exists() or group.parent.exists()]


def test_the_next_gateway_goes_first_too(fresh_platform):
    """After an upgrade in place it is in the place of the one before."""
    platform = fresh_platform
    platform.start()
    assert platform.process is not None
    before = doors(platform)
    (first,) = before
    place = groups(first)
    platform.process.send_signal(signal.SIGUSR2)
    eventually(lambda: doors(platform) - before, within=30, what="another gateway")
    (following,) = doors(platform) - before
    eventually(lambda: groups(following) == place, within=10, what="it goes first")
    assert weight(following) >= 16 * weight(platform.process.pid)
    assert platform.stop() == 0
    assert not [group for group in place if group.exists() or group.parent.exists()]
