"""A whole platform for as long as one command needs it: started, watched, taken down, seen gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from polyolo.errors import NotReadyError, PolyoloError

_START_LIMIT = (
    60.0  # seconds until ready; about 2 on a laptop, many times that on a busy CI machine
)
_DRAIN_LIMIT = 40.0  # seconds; `polyolo up` allows requests and runtimes 30 to finish
_POLL = 0.05  # seconds
_DEEPEST = (
    37  # characters before /polyolo-…/home/run/t_…/io/runtime.sock: a socket's path holds 107
)
_TAIL = 30  # lines of the log that a failure shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A running `polyolo up` that belongs to this process."""

    url: str
    home: Path
    operator_key: str
    took: float
    """Seconds from the start until it was ready."""


@contextmanager
def platform(standard_model: str | None = None) -> Iterator[Platform]:
    """Run `polyolo up` on a free port with a temporary home; take it down afterwards.

    When the body fails, Ctrl-C included, the end of the platform's log goes to stderr first.
    Raises NotReadyError when the platform does not start, and PolyoloError when anything of it
    is left: a process after SIGTERM (it is killed then), or a file. Main thread only (SIGTERM is
    turned into an exit, so that a terminated command cleans up too).
    """
    deep = len(tempfile.gettempdir()) > _DEEPEST
    folder = Path(tempfile.mkdtemp(prefix="polyolo-", dir="/tmp" if deep else None))  # noqa: S108
    log, home, port = folder / "log", folder / "home", _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "polyolo", "up", "--home", str(home), "--port", str(port)]
    if standard_model is not None:
        command += ["--standard-model", standard_model]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {"POLYOLO_PARENT": str(os.getpid())},  # dies with us, kill -9 too
                start_new_session=True,  # Ctrl-C reaches this process only, which then drains it
            )
        took = _wait_until_ready(process, url)
        key = (home / "operator.key").read_text().strip()
        yield Platform(url=url, home=home, operator_key=key, took=took)
    except BaseException:
        _show_end_of(log)
        raise
    finally:
        left = [] if process is None else _take_down(process)
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    if left:
        raise PolyoloError(f"the platform left processes behind, which were killed: {left}")
    if process.returncode != 0:
        raise PolyoloError(f"the platform ended with status {process.returncode} after SIGTERM")
    if folder.exists():
        raise PolyoloError(f"{folder} could not be removed")


def _free_port() -> int:
    """Return a port that is free, and whose successor (for gRPC) is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second, suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> float:
    """Return the seconds until `/readyz` answered 200; raise NotReadyError when it will not."""
    started = time.monotonic()
    with httpx.Client(timeout=5, trust_env=False) as http:
        while process.poll() is None:
            took = time.monotonic() - started
            if took > _START_LIMIT:
                raise NotReadyError(f"the platform was not ready within {_START_LIMIT:.0f} s")
            try:
                if http.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    return took
            except httpx.TransportError:
                pass  # nobody listens yet
            time.sleep(_POLL)
    raise NotReadyError(f"the platform ended with status {process.returncode} as it started")


def _take_down(process: subprocess.Popen[bytes]) -> list[int]:
    """Ask the platform to drain, and return the ids of its processes that outlived it, killed."""
    family = _descendants(process.pid)
    process.terminate()
    try:
        process.wait(_DRAIN_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    left = [pid for pid, started in family.items() if _started(pid) == started]
    for pid in left:
        with suppress(ProcessLookupError):  # it ended just now, late but by itself
            os.kill(pid, signal.SIGKILL)
    return left


def _descendants(root: int) -> dict[int, str]:
    """Return the processes below `root`: id and start time, which together mean one process."""
    parents = {
        int(entry.name): stat[1]
        for entry in Path("/proc").glob("[0-9]*")
        if (stat := _stat(int(entry.name)))
    }
    found: dict[int, str] = {}
    level = {root}
    while level:
        level = {pid for pid, parent in parents.items() if int(parent) in level}
        found |= {pid: started for pid in level if (started := _started(pid))}
    return found


def _started(pid: int) -> str | None:
    stat = _stat(pid)
    return stat[19] if stat and stat[0] != "Z" else None  # a zombie runs no more


def _stat(pid: int) -> list[str]:
    """Return /proc/PID/stat from the third field on (proc(5)); nothing for an ended process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _show_end_of(log: Path) -> None:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL:] if log.exists() else []
    if lines:
        sys.stderr.write("\n".join(("the platform's log ends with:", *lines, "")))
