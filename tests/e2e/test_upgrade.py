"""An upgrade in place, under load: nobody notices; and one that cannot be, which nobody notices."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import polyolo
from tests.e2e.callers import callers
from tests.e2e.platform import Platform, eventually, processes_below


class Installed:
    """The package where a platform finds it, put there in place of the one that was."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.number = 0

    def install(self, version: str, *, broken: str = "") -> None:
        """Put a release there. broken: module that cannot be imported."""
        self.number += 1
        fresh, package = self.place / f"new-{self.number}", self.place / "site" / "polyolo"
        shutil.copytree(Path(polyolo.__file__).parent, fresh)  # compiled files stay valid
        (fresh / "__init__.py").write_text(f'"""polyolo."""\n\n__version__ = "{version}"\n')
        if broken:
            (fresh / broken).write_text("raise RuntimeError('of a broken release')\n")
        package.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            package.rename(self.place / f"old-{self.number}")
        fresh.rename(package)


@pytest.fixture
def installed(tmp_path: Path, fresh_platform: Platform) -> Installed:
    """Give a place that the platform is started from, with release 1.0 in it."""
    installed = Installed(tmp_path)
    installed.install("1.0")
    fresh_platform.program = (sys.executable, "-m", "polyolo")
    fresh_platform.environment = {"PYTHONPATH": str(tmp_path / "site")}
    fresh_platform.start("--warm", "1")
    return installed


def gateways(platform: Platform) -> set[int]:
    """Return the pids of the gateways."""
    return {pid for pid, line in processes_below(platform.home) if "polyolo.gateway" in line}


def version(platform: Platform) -> str:
    """Return the release that answers for the control API."""
    answer = httpx.get(f"{platform.url}/openapi.json", timeout=30)  # waits for the program
    found: str = answer.json()["info"]["version"]
    return found


def test_an_upgrade_in_place_fails_no_request(fresh_platform, installed, board):
    """First two releases that cannot start: all is as before, and the log says why. Then one that
    can: every process but the first is another one, and no request of any kind has failed."""
    platform = fresh_platform
    (first, one), (second, two) = platform.tenant("first"), platform.tenant("second")
    with one, two:
        keys = [one.api_key, two.api_key]
        for client in (one, two):
            client.detect(board)
        before = gateways(platform), {platform.runtime_pid(tenant) for tenant in (first, second)}

        with callers(platform, keys, board.read_bytes()) as load:
            for number, broken in enumerate(("control/reconciler.py", "gateway/app.py"), 1):
                load.more()
                installed.install("1.1", broken=broken)
                platform.process.send_signal(signal.SIGUSR2)
                eventually(
                    lambda n=number: platform.log().count("the upgrade failed") == n,
                    within=40,
                    what="the failure is told",
                )
                assert platform.log().count("of a broken release") >= number
                assert version(platform) == "1.0"
                assert gateways(platform) == before[0]
            load.more()
            installed.install("2.0")
            platform.process.send_signal(signal.SIGUSR2)
            eventually(lambda: version(platform) == "2.0", within=60, what="the next release")
            eventually(
                lambda: not [pid for pid in before[1] if _runs(pid)],
                within=30,
                what="the runtimes are replaced",
            )
            load.more()
        assert sorted(set(load.wrong)) == []
        assert platform.process.poll() is None
        assert gateways(platform) > before[0], "the gateway before finishes, another one serves"
        eventually(
            lambda: one.usage().images + two.usage().images == 2 + load.pictures,
            within=5,
            what="each picture is billed once, whichever gateway it came through",
        )
    assert platform.stop() == 0
    assert processes_below(platform.home) == []
    groups = Path("/sys/fs/cgroup").rglob(f"polyolo-{platform.process.pid}-*")
    assert list(groups) == [], "nor a control group of a runtime from before or after"


def test_an_upgraded_platform_takes_its_children_along_when_it_is_killed(
    fresh_platform, installed, board
):
    """kill -9 right after an upgrade, old gateway, old and new runtimes there: no orphan."""
    _, client = fresh_platform.tenant("first")
    with client:
        client.detect(board)
        installed.install("2.0")
        fresh_platform.process.send_signal(signal.SIGUSR2)
        eventually(lambda: version(fresh_platform) == "2.0", within=60, what="the next release")
        client.detect(board)
        assert len(gateways(fresh_platform)) == 2
        fresh_platform.process.kill()
        fresh_platform.process.wait()
        eventually(
            lambda: not processes_below(fresh_platform.home), within=5, what="every child is gone"
        )
        fresh_platform.start()
        client.detect(board)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
