"""The process of one model: opens it, then answers jobs on its streams until they are closed.

`python -m polyolo.serving.worker FD...`: each descriptor is a connected Unix socket, a stream,
served by a thread of its own. A model that crashes, hangs or leaks does it here, where nothing
else lives. The process listens nowhere and writes nothing.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from polyolo.errors import PolyoloError
from polyolo.lifeline import die_with_parent, keep_memory_private
from polyolo.serving import malloc, memory
from polyolo.serving.wire import LENGTHS, Job, Opened, Opening, frame, lengths, split

if TYPE_CHECKING:
    from polyolo.serving.detector import Detector
    from polyolo.serving.pipeline import Pipeline

T = TypeVar("T")

_LEAST_BYTES = 256 * 2**20  # a process may try; an ordinary model opens in a third of it


def main(descriptors: Sequence[int]) -> None:
    """Open the model that the first frame names, then serve the streams until they are closed."""
    die_with_parent()
    _pay_first()
    keep_memory_private()
    from polyolo.serving.image import configure_opencv
    from polyolo.serving.pipeline import Pipeline

    malloc.configure()
    configure_opencv()
    streams = [Stream(socket.socket(fileno=descriptor)) for descriptor in descriptors]
    opening, _ = streams[0].receive(Opening)
    try:
        detector, opened = _open(opening)
    except Exception as error:  # noqa: BLE001  # whatever it is, the tenant is told
        streams[0].send(Opened(refused=_reason(error)))
        return
    malloc.give_back()
    streams[0].send(opened)
    pipeline = Pipeline(opening.ref, detector)
    threads = [threading.Thread(target=serve, args=(one, pipeline)) for one in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _pay_first() -> None:
    """Have this process, not the runtime, pay when memory runs out; leave signals to the runtime.

    A terminal or a supervisor signals every process of a group; this one still has requests to
    answer then, and ends when the runtime hangs up.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    left = memory.available()
    if left is not None:  # what goes beyond it fails as an allocation, in one request
        most = max(left, _LEAST_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _open(opening: Opening) -> tuple[Detector, Opened]:
    from polyolo.serving import choice, loading
    from polyolo.serving.engines import Options

    data = loading.read_file(Path(opening.path), opening.digest)
    chosen = choice.choose(data, opening)
    detector = loading.open_detector(
        data,
        family=opening.family,
        classes=opening.classes,
        engine=chosen.engine,
        options=Options(arithmetic=chosen.arithmetic, streams=opening.streams),
    )
    return detector, Opened(
        family=detector.head.family,
        input=detector.head.input.shape,
        engine=detector.engine.name,
        device=detector.engine.device,
        precision=chosen.arithmetic,
        speed=chosen.speed,
        quality=chosen.quality,
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
        self._connection.close()

    def receive(self, kind: type[T]) -> tuple[T, memoryview]:
        """Wait for a frame; return its header as `kind`, and the rest. Raises EOFError."""
        header_size, size = lengths(self._exactly(LENGTHS.size))
        whole = self._exactly(header_size + size)
        return msgspec.msgpack.decode(whole[:header_size], type=kind), whole[header_size:]

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
