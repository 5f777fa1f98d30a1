"""The process of one model: opens it, then answers jobs on its streams until they are closed.

`python -m polyolo.serving.worker FD...`: each descriptor is a connected Unix socket, a stream,
served by a thread of its own. A model that crashes, hangs or leaks does it here, where nothing
else lives. The process listens nowhere and writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from polyolo.errors import PolyoloError
from polyolo.lifeline import die_with_parent, keep_memory_private
from polyolo.sandbox import landlock
from polyolo.serving import malloc, memory
from polyolo.serving.wire import LENGTHS, Job, Opened, Opening, frame, lengths, split

if TYPE_CHECKING:
    from polyolo.serving.pipeline import Pipeline

T = TypeVar("T")

_GENTLY = 5
"""What is added to the nice value of a thread that opens a model while others serve: a third of
what they get of a core that all want, and all of one that nobody else wants."""
_LEAST_BYTES = 256 * 2**20  # a process may try; an ordinary model opens in a third of it


def main(descriptors: Sequence[int]) -> None:
    """Open the model that the first frame names, then serve the streams until they are closed."""
    die_with_parent()
    _pay_first()
    keep_memory_private()
    landlock.make_nothing()  # a model that takes this process over could fill the disk by names
    malloc.configure()
    streams = [Stream(socket.socket(fileno=descriptor)) for descriptor in descriptors]
    if not streams[0].has_come():  # started ahead of its model
        _import_ahead()
    opening, _ = streams[0].receive(Opening)
    _bound_memory()
    future: Future[Pipeline] = Future()
    # Started now: a thread has the priority of the one that started it, and cannot raise it.
    threads = [threading.Thread(target=_serve_once_open, args=(one, future)) for one in streams]
    for thread in threads:
        thread.start()
    try:
        if opening.gently:
            _give_way(opening)
        pipeline, opened = _open(opening)
    except Exception as error:  # noqa: BLE001  # whatever it is, the tenant is told
        streams[0].send(Opened(refused=_reason(error)))
        future.cancel()
    else:
        malloc.give_back()
        streams[0].send(opened)
        future.set_result(pipeline)
    for thread in threads:
        thread.join()


def _serve_once_open(stream: Stream, future: Future[Pipeline]) -> None:
    with contextlib.suppress(CancelledError):  # it could not be opened
        serve(stream, future.result())


def _pay_first() -> None:
    """Have this process, not the runtime, pay when memory runs out; leave signals to the runtime.

    A terminal or a supervisor signals every process of a group; this one still has requests to
    answer then, and ends when the runtime hangs up.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _bound_memory() -> None:
    """Have what goes beyond the memory that is left fail as an allocation, in one request."""
    left = memory.available()
    if left is not None:
        most = max(left + memory.own(os.getpid()), _LEAST_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _import_ahead() -> None:
    """Import what most models need, while nobody waits for one."""
    from polyolo.serving import choice, image, loading, pipeline
    from polyolo.serving.engines import onnxruntime

    del choice, image, loading, pipeline, onnxruntime


def _give_way(opening: Opening) -> None:
    """Have this thread, which opens the model, give way to others; those that serve do not."""
    # An engine that is to be measured, or has threads of its own to serve with, is not slowed.
    if opening.engine in ("", "onnxruntime") and opening.precision == "exact":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            mine = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, mine + _GENTLY))


def _open(opening: Opening) -> tuple[Pipeline, Opened]:
    from polyolo.serving import choice, loading
    from polyolo.serving.engines import Options
    from polyolo.serving.image import configure_opencv
    from polyolo.serving.pipeline import Pipeline

    configure_opencv()
    data = loading.read_file(Path(opening.path), opening.digest, opening.key)
    chosen = choice.choose(data, opening)
    detector = loading.open_detector(
        data,
        family=opening.family,
        classes=opening.classes,
        engine=chosen.engine,
        input_size=opening.input_size,
        options=Options(arithmetic=chosen.arithmetic, streams=opening.streams),
    )
    return Pipeline(opening.ref, detector), Opened(
        family=detector.head.family,
        input=detector.head.input.shape,
        engine=detector.engine.name,
        device=detector.engine.device,
        precision=chosen.arithmetic,
        speed=chosen.speed,
        quality=chosen.quality,
        classes=detector.names,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, PolyoloError):
        return error.detail
    if isinstance(error, OSError):
        return f"its file cannot be read: {error.strerror}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return f"opening it failed unexpectedly ({type(error).__name__})"


def serve(stream: Stream, pipeline: Pipeline) -> None:
    """Answer the batches of one stream, one after the other, until it is closed."""
    with stream, contextlib.suppress(EOFError, OSError):  # the runtime closed it, or is gone
        while True:
            jobs, rest = stream.receive(list[Job])
            pictures = split(rest, [job.size for job in jobs])
            answers, bodies = pipeline.answer(jobs, pictures)
            del pictures, rest  # or an idle stream would hold its last pictures
            stream.send(answers, bodies)


class Stream:
    """One end of a socket pair that carries frames. For one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up, so that the runtime learns of a thread that has failed."""
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def receive(self, kind: type[T]) -> tuple[T, memoryview]:
        """Wait for a frame; return its header as `kind`, and the rest. Raises EOFError."""
        header_size, size = lengths(self._exactly(LENGTHS.size))
        whole = self._exactly(header_size + size)
        return msgspec.msgpack.decode(whole[:header_size], type=kind), whole[header_size:]

    def has_come(self) -> bool:
        """Say whether something is there to be received."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def send(self, header: object, parts: Sequence[bytes] = ()) -> None:
        """Send a frame."""
        self._connection.sendall(b"".join(frame(header, parts)))

    def _exactly(self, size: int) -> memoryview:
        whole = memoryview(bytearray(size))
        left = whole
        while len(left):
            count = self._connection.recv_into(left)
            if count == 0:
                raise EOFError
            left = left[count:]
        return whole.toreadonly()


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
