"""Gives one loaded model a process of its own, and carries jobs to it.

What a model does to its process (crash, hang, leak, hold a lock while loading) it does to itself:
requests to other models never notice. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.wire import LENGTHS, Answer, Job, Opened, Opening, frame, split

T = TypeVar("T")

Reply = tuple[list[Answer], list[memoryview]]
"""What came of a batch: an answer for each job, and the encoded bodies."""

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's BLAS would start a thread a core, and keep memory for each; nothing here multiplies."""

_EXIT_S = 5.0  # for a process whose streams are closed; it has nothing left to do


class ModelProcess:
    """A process with one open model. From `start` until `close` or until it has `ended`."""

    def __init__(self, child: asyncio.subprocess.Process, streams: list[_Stream]) -> None:
        self._child = child
        self._streams = streams
        self.opened = Opened()
        self.pid = child.pid
        self._watching = asyncio.create_task(self._watch())

    async def answer(self, stream: int, jobs: Sequence[Job], pictures: Sequence[bytes]) -> Reply:
        """Have a batch answered on one stream, which carries one batch at a time.

        Raises ModelFailedError when the process ends before it has answered. Cancelling leaves
        the stream out of step: kill the process then.
        """
        try:
            await self._streams[stream].send(jobs, pictures)
            answers, rest = await self._streams[stream].receive(list[Answer])
            return answers, split(rest, [answer.size for answer in answers])
        except (EOFError, OSError, ValueError, msgspec.MsgspecError):
            self.kill()
            how = await self.ended()
            raise ModelFailedError(
                f"the model's process ended during this request: {how}"
            ) from None

    async def ended(self) -> str:
        """Wait for the process to end; return how it did, for a person to read."""
        return await asyncio.shield(self._watching)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._child.kill()

    async def close(self) -> None:
        """End the process; no stream carries a batch any more."""
        for stream in self._streams:
            stream.close()
        try:
            async with asyncio.timeout(_EXIT_S):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    async def _watch(self) -> str:
        status = await self._child.wait()
        for stream in self._streams:
            stream.close()
        return _how(status)


class _Stream:
    """The runtime's end of a socket pair that carries frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, header: object, parts: Sequence[bytes] = ()) -> None:
        self._writer.writelines(frame(header, parts))
        await self._writer.drain()

    async def receive(self, kind: type[T]) -> tuple[T, memoryview]:
        """Raises EOFError (IncompleteReadError is one) when the other end is gone."""
        header_size, size = LENGTHS.unpack(await self._reader.readexactly(LENGTHS.size))
        whole = memoryview(await self._reader.readexactly(header_size + size))
        return msgspec.msgpack.decode(whole[:header_size], type=kind), whole[header_size:]

    def close(self) -> None:
        self._writer.close()


async def start(opening: Opening) -> ModelProcess:
    """Start a process and have it open a model; return it ready to answer.

    Raises ModelRefusedError with the reason for a model that cannot be served, even if that
    shows by a crash. Cancelling ends the process.
    """
    pairs = [socket.socketpair() for _ in range(opening.streams)]
    theirs = [other.fileno() for _, other in pairs]
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "polyolo.serving.worker", *map(str, theirs)),
        pass_fds=theirs,
        stdin=asyncio.subprocess.DEVNULL,
        env=os.environ | _ENVIRONMENT | {"POLYOLO_PARENT": str(os.getpid())},
    )
    for _, other in pairs:
        other.close()
    streams = [_Stream(*await asyncio.open_connection(sock=mine)) for mine, _ in pairs]
    process = ModelProcess(child, streams)
    try:
        await streams[0].send(opening)
        process.opened, _ = await streams[0].receive(Opened)
    except (EOFError, OSError):
        process.kill()
        how = await process.died
        raise ModelRefusedError(f"opening it ended the process that tried: {how}") from None
    except BaseException:
        process.kill()
        raise
    if process.opened.refused:
        await process.close()
        raise ModelRefusedError(process.opened.refused)
    return process


def _how(status: int) -> str:
    """Say how a process ended. status: as subprocess counts it, negative for a signal."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was ended by signal {signal.Signals(-status).name}"
    except ValueError:
        return f"it was ended by signal {-status}"
