"""Asks a runtime over its Unix socket: one short request, bounded in time and size."""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

_ANSWER_LIMIT = 1 << 20
"""Bytes read of an answer; the status of 1,000 model versions is 200 kB."""

_UCRED = struct.Struct("=iII")  # pid, user, group; unix(7)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, of: int, timeout: float) -> None:
        super().__init__("runtime", timeout=timeout)
        self._path = path
        self._of = of

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(credentials)[0] != self._of:  # who began to listen
            raise ConnectionError(f"not process {self._of} listens on {self._path}")


def ask(
    path: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    of: int,
    headers: Mapping[str, str] | None = None,
    timeout: float,
) -> tuple[int, bytes]:
    """Return status and body of the answer.

    of: process that must be the one that listens. headers: more of them. timeout: seconds for
    each read and write. Raises OSError: FileNotFoundError or ConnectionRefusedError when nobody
    listens (yet), ConnectionError when somebody else does, TimeoutError when nobody answers.
    """
    connection = _Connection(path, of, timeout)
    try:
        more = {"content-type": "application/json", **(headers or {})}
        connection.request(method, target, body, more)
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_LIMIT)
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {type(error).__name__}") from None
    finally:
        connection.close()
