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
from contextlib import ExitStack, suppress
from typing import TypeVar

import msgspec

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving import memory
from polyolo.serving.wire import LENGTHS, Answer, Job, Opened, Opening, frame, lengths, split

T = TypeVar("T")

Reply = tuple[list[Answer], list[memoryview]]
"""What came of a batch: an answer for each job, and the encoded bodies."""

_ENVIRONMENT = {
    # numpy's BLAS would start a thread a core, and keep memory for each; nothing here multiplies.
    "OPENBLAS_NUM_THREADS": "1",
    # glibc gives each thread a heap of its own and keeps what is freed in it: 8 to 10 MB for
    # YOLOX-Nano after a few hundred photos, at no gain in speed that two streams could show.
    "MALLOC_ARENA_MAX": "1",
}
"""Of a model's process. Set from outside, since they are read before Python runs."""

_EXIT_S = 1.0  # for a process that has hung up; what has not ended by then is ended


class ModelProcess:
    """A process with one open model. From `start` until `close` or until it has `ended`."""

    def __init__(self, child: asyncio.subprocess.Process, streams: Sequence[_Stream]) -> None:
        self._child = child
        self._streams = streams
        self.opened = Opened()
        self.pid = child.pid
        self._stopped_before = memory.stopped()
        self._watching = asyncio.create_task(self._watch())

    async def answer(self, stream: int, jobs: Sequence[Job], pictures: Sequence[bytes]) -> Reply:
        """Have a batch answered on one stream, which carries one batch at a time.

        Raises ModelFailedError when the process ends before it has answered. Cancelling leaves
        the stream out of step: kill the process then.
        """
        try:
            await self._streams[stream].send(jobs, pictures)
            answers, rest = await self._streams[stream].receive(list[Answer])
            bodies = split(rest, [answer.size for answer in answers])
            if len(answers) != len(jobs):
                raise ValueError("not an answer for each job")
        except _BROKEN:
            how = await self._lost()
            raise ModelFailedError(
                f"the model's process ended during this request: {how}"
            ) from None
        return answers, bodies

    async def open(self, opening: Opening) -> None:
        """Have the model opened, once, before anything else. Raises ModelRefusedError."""
        try:
            await self._streams[0].send(opening)
            self.opened, _ = await self._streams[0].receive(Opened)
        except _BROKEN:
            how = await self._lost()
            raise ModelRefusedError(f"opening it ended the process that tried: {how}") from None
        if self.opened.refused:
            raise ModelRefusedError(self.opened.refused)

    def fits(self, opening: Opening) -> bool:
        """Say whether it runs, and with as many streams as a model is to have."""
        return not self._watching.done() and len(self._streams) == opening.streams

    async def ended(self) -> str:
        """Wait for the process to end; return how it did, for a person to read."""
        return await asyncio.shield(self._watching)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._child.kill()

    async def close(self) -> None:
        """End the process and wait until it is gone: it holds nothing that would be missed."""
        self.kill()
        await self.ended()

    async def _lost(self) -> str:
        """Return how a process ended whose stream broke off; end it where it has not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_S):
                return await self.ended()
        self.kill()
        return await self.ended()

    async def _watch(self) -> str:
        status = await self._child.wait()
        for stream in self._streams:
            stream.close()
        if status == -signal.SIGKILL and memory.stopped() > self._stopped_before:
            return "it was ended at the runtime's limit on memory"
        return _how(status)


class _Stream:
    """The runtime's end of a socket pair that carries frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, header: object, parts: Sequence[bytes] = ()) -> None:
        if self._writer.is_closing():
            raise EOFError("the process is gone")  # uvloop's own words are a RuntimeError
        self._writer.writelines(frame(header, parts))
        await self._writer.drain()

    async def receive(self, kind: type[T]) -> tuple[T, memoryview]:
        """Raises EOFError (IncompleteReadError is one) when the other end is gone."""
        header_size, size = lengths(await self._reader.readexactly(LENGTHS.size))
        whole = memoryview(await self._reader.readexactly(header_size + size))
        return msgspec.msgpack.decode(whole[:header_size], type=kind), whole[header_size:]

    def close(self) -> None:
        self._writer.close()


_BROKEN = (EOFError, OSError, ValueError, msgspec.MsgspecError)
"""What a stream raises whose other end is gone or out of step."""


async def start(
    opening: Opening,
    *,
    background: bool = False,
    within_s: float = 120.0,
    ahead: ModelProcess | None = None,
) -> ModelProcess:
    """Start a process and have it open a model; return it ready to answer.

    background: it gets only the processor time that others leave over. within_s: seconds that
    opening may take; the largest YOLO takes under 5. ahead: what `launch` has started before, to
    be used if it still can. Raises ModelRefusedError with the reason for a model that cannot be
    served, even if that shows by a crash or by taking too long, and OSError when there is no room
    for another process. Cancelling ends the process.
    """
    if ahead is not None and not ahead.fits(opening):
        await ahead.close()
        ahead = None
    process = ahead or await launch(opening.streams)
    if background:
        _yield_to_others(process.pid)
    try:
        async with asyncio.timeout(within_s):
            await process.open(opening)
    except TimeoutError:
        await process.close()
        raise ModelRefusedError(f"opening it took longer than {within_s:g} s") from None
    except BaseException:
        await process.close()
        raise
    return process


async def launch(count: int) -> ModelProcess:
    """Start a process with so many streams, which imports what most models need until `start`
    gives it one. Raises OSError."""
    streams: list[_Stream] = []
    with ExitStack() as held:
        theirs: list[int] = []
        try:
            for _ in range(count):
                mine, other = socket.socketpair()
                held.enter_context(other)
                theirs.append(other.fileno())
                streams.append(_Stream(*await asyncio.open_connection(sock=mine)))
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "polyolo.serving.worker", *map(str, theirs)),
                pass_fds=theirs,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT | {"POLYOLO_PARENT": str(os.getpid())},
            )
        except BaseException:
            for stream in streams:
                stream.close()
            raise
    return ModelProcess(child, streams)


def _yield_to_others(pid: int) -> None:
    """Have a process, just started, run when nobody else wants to; its threads inherit that."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _how(status: int) -> str:
    """Say how a process ended. status: as subprocess counts it, negative for a signal."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was ended by signal {signal.Signals(-status).name}"
    except ValueError:
        return f"it was ended by signal {-status}"
