"""The pod's end of a task: takes one file from control, runs a program on it confined, answers.

Started in a pod that has nothing but this (see `drivers.kubernetes.jobs`): the modules of this
package that it imports are sent along, so they need the standard library only. Both ends prove
themselves first by a key of this one task: nobody else's request is taken for control's, and no
stranger that has got the pod's address since gets a file. On the wire: documents of JSON and, by
the sizes that they name, bytes. What a confined program may do to this process changes no more than
the answer about itself, for it is the only one that the pod ever runs.
"""

from __future__ import annotations

import hmac
import json
import os
import platform
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any, Protocol

from polyolo.sandbox import seccomp
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Outcome, memory_file, run_job
from polyolo.sandbox.layers import Isolation, Layer
from polyolo.sandbox.trial import fails, interpreter

PORT = 8080
ADDRESS = "POD_IP"
"""Variable with the pod's address."""
REQUEST_BYTES, ANSWER_BYTES = 4 << 20, 64 << 10
"""Most bytes of the document of each end."""
LIMITS = tuple(
    one.name
    for one in fields(Confinement)
    if one.name not in ("readable", "writable", "sockets", "network")
)
"""What of a Confinement goes with a request: a pod has neither files nor a network to give."""
_GIVEN = (Layer.USER, Layer.SECCOMP, Layer.LANDLOCK, Layer.RLIMITS)
"""Layers that are made in the pod, beside those that it is: its user is nobody else's already."""
_PIECE = 1 << 20
_WORD = 32
_WAIT_S = 45.0
"""Seconds for control to come; it looks every second. Killed before, it never will."""
_PATIENCE_S = 10.0
"""Seconds for whoever connects to prove itself."""
_READ_S = 30.0
"""Seconds for control to take the answer."""


class Line(Protocol):
    """What documents and bytes go over: a socket, or what bounds one."""

    def recv(self, size: int, /) -> bytes:
        """Return some bytes, none at the end. Raises OSError."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Send bytes. Raises OSError."""
        ...


def main(key: str) -> None:
    """Serve one task and end. key: hex digits; the address stands in the environment."""
    unfit = _unfit()
    mine, theirs = proofs(bytes.fromhex(key))
    with _accepted(os.environ[ADDRESS], mine, theirs, _WAIT_S) as connection:
        request = receive(connection, REQUEST_BYTES)
        with memory_file(pieces(connection, request["size"]), "file") as file:
            answered = threading.Event()
            end = threading.Thread(target=_end_with, args=(connection, answered), daemon=True)
            end.start()
            if unfit:
                send(connection, {"unfit": unfit})
            else:
                _answer(connection, request, file)
            answered.set()
            # Gone with the pod's network would be what control has not read yet.
            connection.shutdown(socket.SHUT_WR)
            end.join(_READ_S)


def proofs(key: bytes) -> tuple[bytes, bytes]:
    """Return what the pod proves itself with, and what control does."""
    return hmac.digest(key, b"pod", "sha256"), hmac.digest(key, b"control", "sha256")


def send(connection: Line, document: dict[str, Any]) -> None:
    """Send a document. Raises OSError."""
    encoded = json.dumps(document).encode()
    connection.sendall(struct.pack(">I", len(encoded)) + encoded)


def receive(connection: Line, most: int) -> dict[str, Any]:
    """Return a document of at most so many bytes. Raises OSError, ValueError for what is none."""
    (size,) = struct.unpack(">I", b"".join(pieces(connection, 4)))
    if size > most:
        raise ValueError(f"a document of {size} bytes")
    try:
        found = json.loads(b"".join(pieces(connection, size)))
    except RecursionError:
        raise ValueError("a document without end") from None
    if not isinstance(found, dict):
        raise ValueError("no document")
    return found


def pieces(connection: Line, size: int) -> Iterator[bytes]:
    """Yield so many bytes. Raises OSError, also when there are fewer."""
    while size:
        piece = connection.recv(min(size, _PIECE))
        if not piece:
            raise ConnectionError("the other end is gone")
        size -= len(piece)
        yield piece


def contents(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield the first bytes of a file; zeros for what is gone from its end meanwhile."""
    at = 0
    while at < size:
        wanted = min(_PIECE, size - at)
        piece = os.pread(descriptor, wanted, at) or bytes(wanted)
        at += len(piece)
        yield piece


def _unfit() -> str:
    """Return why nothing may be run here; empty when every layer is made."""
    if platform.machine() not in seccomp.architectures():
        return f"system calls of {platform.machine()} are not known"
    return fails(_isolation())


def _isolation() -> Isolation:
    missing = dict.fromkeys([one for one in Layer if one not in _GIVEN], "the pod is one")
    return Isolation(missing=missing, interpreter=interpreter())


def _accepted(address: str, mine: bytes, theirs: bytes, wait_s: float) -> socket.socket:
    """Return the connection of who has proved to be control; let others go. Raises TimeoutError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    until = time.monotonic() + wait_s
    with socket.create_server((address, PORT), family=family) as listener:
        while True:
            listener.settimeout(max(0.001, until - time.monotonic()))
            connection, _ = listener.accept()
            with suppress(OSError):
                connection.settimeout(_PATIENCE_S)
                if hmac.compare_digest(b"".join(pieces(connection, _WORD)), theirs):
                    connection.sendall(mine)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    connection.settimeout(None)  # the Job has a deadline
                    return connection
            connection.close()


def _end_with(connection: socket.socket, answered: threading.Event) -> None:
    """End this process, and so the pod, when control is gone before it has its answer."""
    with suppress(OSError):
        connection.recv(1)
    if not answered.is_set():
        os._exit(1)


def _answer(connection: socket.socket, request: dict[str, Any], file: int) -> None:
    result = os.memfd_create("result") if request["result"] else None
    passed = [file] if result is None else [file, result]
    confinement = Confinement(**{name: request["limits"][name] for name in LIMITS})
    outcome: Outcome = run_job(
        [*request["command"], *(f"/proc/self/fd/{one}" for one in passed), *request["words"]],
        confinement,
        _isolation(),
        time_s=request["time_s"],
        passed_fds=passed,
        output_bytes=request["output_bytes"],
    )
    size = 0 if result is None else os.fstat(result).st_size
    send(
        connection,
        {
            "ending": outcome.ending.value,
            "code": outcome.code,
            "sizes": [len(outcome.output), len(outcome.errors), size],
        },
    )
    connection.sendall(outcome.output)
    connection.sendall(outcome.errors)
    if result is not None:
        for piece in contents(result, size):
            connection.sendall(piece)
