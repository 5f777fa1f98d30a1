"""Asks a runtime over its Unix socket: one short request, bounded in time and size."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

_ANSWER_LIMIT = 1 << 20
"""Bytes read of an answer; the status of 1,000 model versions is 200 kB."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("runtime", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path, method: str, target: str, body: bytes | None = None, *, timeout: float
) -> tuple[int, bytes]:
    """Return status and body of the answer.

    timeout: seconds for each read and write. Raises OSError: FileNotFoundError or
    ConnectionRefusedError when nobody listens (yet), TimeoutError when nobody answers.
    """
    connection = _Connection(path, timeout)
    try:
        connection.request(method, target, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_LIMIT)
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {type(error).__name__}") from None
    finally:
        connection.close()
