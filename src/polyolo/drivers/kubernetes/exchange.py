"""Control's end of a task: sends a file to the pod's receiver, and takes what became of it.

Whatever comes back may be a hostile program's own words: it is bounded, and otherwise believed of
that program only.
"""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from polyolo.sandbox import receiver
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome
from polyolo.sandbox.receiver import contents, pieces

_ERRORS_BYTES = 64 << 10
_WORD = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of the receiver."""

    file: int
    size: int
    command: Sequence[str]
    words: Sequence[str]
    confinement: Confinement
    time_s: float
    output_bytes: int
    result: int | None


class _Answer(msgspec.Struct, frozen=True):
    sizes: tuple[int, int, int] = (0, 0, 0)
    ending: Ending = Ending.EXITED
    code: int = 0
    unfit: str = ""


class UnfitError(OSError):
    """The pod cannot confine a program as it has to be."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """A connection whose calls end by a moment of the monotonic clock, all of them together."""

    connection: socket.socket
    until: float

    def recv(self, size: int) -> bytes:
        """Return some bytes. Raises OSError."""
        self._bound()
        return self.connection.recv(size)

    def sendall(self, data: bytes) -> None:
        """Send bytes. Raises OSError."""
        self._bound()
        self.connection.sendall(data)

    def _bound(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the pod takes too long")
        self.connection.settimeout(left)


def met(address: str, key: str, timeout_s: float) -> socket.socket:
    """Return a connection to the receiver that has the key. Raises OSError."""
    line = _Timed(
        socket.create_connection((address, receiver.PORT), timeout_s), time.monotonic() + timeout_s
    )
    try:
        theirs, mine = receiver.proofs(bytes.fromhex(key))
        line.sendall(mine)
        if not hmac.compare_digest(b"".join(pieces(line, _WORD)), theirs):
            raise ConnectionError("somebody else answers at the pod's address")
        line.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except BaseException:
        line.connection.close()
        raise
    return line.connection


def tell(connection: socket.socket, request: Request, until: float) -> None:
    """Send the file, and what is to be done with it. until: on the monotonic clock.

    Raises OSError.
    """
    line = _Timed(connection, until)
    document = {
        "size": request.size,
        "command": list(request.command),
        "words": list(request.words),
        "limits": {name: getattr(request.confinement, name) for name in receiver.LIMITS},
        "time_s": request.time_s,
        "output_bytes": request.output_bytes,
        "result": request.result is not None,
    }
    receiver.send(line, document)
    for piece in contents(request.file, request.size):
        line.sendall(piece)


def hear(connection: socket.socket, request: Request, until: float) -> Outcome:
    """Return what became of the program, and write what it wrote into the request's result.

    Raises OSError when the connection ends first, TimeoutError, UnfitError, and ValueError for
    what is no answer.
    """
    line = _Timed(connection, until)
    answer = _read(receiver.receive(line, receiver.ANSWER_BYTES))
    if answer.unfit:
        raise UnfitError(f"its pod cannot confine a program: {answer.unfit[:300]}")
    most = 0 if request.result is None else request.confinement.file_bytes or 0
    for size, bound in zip(answer.sizes, (request.output_bytes, _ERRORS_BYTES, most), strict=True):
        if not 0 <= size <= bound:
            return Outcome(ending=Ending.OUTPUT, code=0, output=b"", errors=b"")
    output, errors = (b"".join(pieces(line, size)) for size in answer.sizes[:2])
    if request.result is not None:
        with open(os.dup(request.result), "wb") as file:  # noqa: PTH123  # a descriptor
            file.writelines(pieces(line, answer.sizes[2]))
    return Outcome(ending=answer.ending, code=answer.code, output=output, errors=errors)


def _read(document: dict[str, object]) -> _Answer:
    try:
        return msgspec.convert(document, _Answer)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
