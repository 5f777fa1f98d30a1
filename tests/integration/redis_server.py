"""A real Redis on a Unix socket, for tests and measurements that have one installed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def redis(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Redis that keeps nothing, on a socket in `home`."""
    socket = home / "redis.sock"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", home],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)
        yield server
    finally:
        server.kill()
        server.wait()
        socket.unlink(missing_ok=True)
