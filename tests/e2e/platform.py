"""The whole platform for end to end tests: `polyolo up` as a process, as an operator starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from polyolo.client import Client
from polyolo.resources import Tenant

T = TypeVar("T")

SHARED = Path(__file__).parents[2].parent / "shared"
POLYOLO = Path(sys.executable).parent / "polyolo"


def eventually(look: Callable[[], T], *, within: float, what: str) -> T:
    """Return what `look` sees as soon as it is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that is free, and whose successor (for gRPC) is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def processes_below(home: Path) -> list[tuple[int, str]]:
    """Return (pid, command line) of every living process that names `home` as an argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended while we looked
        if str(home) in command and state != "Z" and int(entry.name) != os.getpid():
            found.append((int(entry.name), command))
    return found


class Platform:
    """One `polyolo up` with a home of its own."""

    first_answer_s = 2.0
    """Seconds that a new tenant's first answer may take."""
    ca: Path | None = None
    """Certificates that its door is known by; None: it speaks no TLS."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        # Not pytest's tmp_path: its length would not leave room for the sockets' names.
        self.home = Path(tempfile.mkdtemp(prefix="polyolo-e2e-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc = f"127.0.0.1:{self.port + 1}"
        self.process: subprocess.Popen[bytes] | None = None
        self.program: tuple[str | Path, ...] = (POLYOLO,)
        self.environment = dict(environment or {})

    def start(self, *options: str) -> None:
        """Start the platform and return when it is ready."""
        with (self.home / "platform.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "up", "--home", self.home, "--port", str(self.port), *options],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        eventually(self._ready, within=40, what="polyolo up answers /readyz")

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"polyolo up ended:\n{self.log()[-4000:]}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        """Ask the platform to drain, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)

    def close(self) -> None:
        """End what is still there and remove the home."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.home)

    def log(self) -> str:
        """Return what the platform and its processes have said."""
        return (self.home / "platform.log").read_text()

    @property
    def operator_key(self) -> str:
        return (self.home / "operator.key").read_text().strip()

    def operator(self) -> Client:
        """Return the operator's client."""
        return Client(self.url, self.operator_key)

    def tenant(self, name: str) -> tuple[Tenant, Client]:
        """Create a tenant and return it with a client that holds its key."""
        with self.operator() as operator:
            tenant = operator.create_tenant(name)
        assert tenant.api_key is not None
        assert tenant.api_key.key is not None
        return tenant, Client(self.url, tenant.api_key.key)

    def runtime_pid(self, tenant: Tenant) -> int:
        """Return the pid of the tenant's runtime, of its newest copy."""
        files = (self.home / "run").glob(f"{tenant.id}*/runtime.json")
        file = max(files, key=lambda one: one.stat().st_mtime_ns)
        return int(json.loads(file.read_text())["pid"])
