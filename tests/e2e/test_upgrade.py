"""An upgrade in place, under load: nobody notices; and one that cannot be, which nobody notices."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc

import polyolo
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


class Callers:
    """Threads that call one thing each, again and again, and what went wrong."""

    def __init__(self) -> None:
        self.calls = 0
        self.pictures = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, call: Callable[[], str], *, pictures: int = 0) -> None:
        """Call it until the end; it returns what is wrong, if anything. pictures: in each call."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    wrong = call()
                except Exception as error:  # noqa: BLE001  # of every library there is
                    wrong = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.calls += 1
                    self.pictures += pictures
                    self.wrong += [wrong] if wrong else []
                self._stop.wait(0.05)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def more(self) -> None:
        """See each of them go on for a while."""
        enough = self.calls + 10 * len(self._threads)
        eventually(lambda: self.calls > enough, within=30, what="calls go on")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def installed(tmp_path: Path, fresh_platform: Platform) -> Installed:
    """Give a place that the platform is started from, with release 1.0 in it."""
    installed = Installed(tmp_path)
    installed.install("1.0")
    fresh_platform.program = (sys.executable, "-m", "polyolo")
    fresh_platform.environment = {"PYTHONPATH": str(tmp_path / "site")}
    fresh_platform.start("--warm", "1")
    return installed


@contextmanager
def callers(platform: Platform, keys: list[str], picture: bytes) -> Iterator[Callers]:
    """Have tenants' pictures detected by HTTP and gRPC, over kept and new connections; and ask
    the control API, for something and to change something."""
    found = Callers()
    kept = [httpx.Client(base_url=platform.url, timeout=30) for _ in range(4)]
    stubs = [tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{platform.port + 1}")]
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([picture], dtype=np.object_))

    def bearer(key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def said(answer: httpx.Response) -> str:
        return "" if answer.is_success else f"{answer.status_code} {answer.text}"

    def by_grpc(stub: tritonclient.grpc.InferenceServerClient, key: str) -> str:
        number = stub.infer("standard", [image], headers=bearer(key)).as_numpy("num_dets")
        return "" if number[0, 0] > 0 else "nothing found"

    def detect(http: httpx.Client, key: str) -> Callable[[], str]:
        return lambda: said(http.post("/v1/detect", content=picture, headers=bearer(key)))

    def anew(key: str) -> str:
        with httpx.Client(base_url=platform.url, timeout=30) as http:
            return detect(http, key)()

    def anew_by_grpc(key: str) -> str:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{platform.port + 1}") as stub:
            return by_grpc(stub, key)

    def change() -> str:
        keys_of_one = "/api/v1/tenants/me/keys"
        made = kept[3].post(keys_of_one, json={"name": "passing"}, headers=bearer(keys[0]))
        if not made.is_success:
            return said(made)
        made_id = made.json()["id"]
        return said(kept[3].delete(f"{keys_of_one}/{made_id}", headers=bearer(keys[0])))

    try:
        for number, key in enumerate(keys):
            found.add(detect(kept[number], key), pictures=1)
            found.add(lambda key=key: by_grpc(stubs[0], key), pictures=1)
        found.add(lambda: anew(keys[0]), pictures=1)
        found.add(lambda: anew_by_grpc(keys[1]), pictures=1)
        found.add(lambda: said(kept[2].get("/api/v1/tenants/me", headers=bearer(keys[1]))))
        found.add(change)
        yield found
    finally:
        found.end()
        for client in (*kept, *stubs):
            client.close()


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
