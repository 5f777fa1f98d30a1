"""The process of one model: opens it, then answers jobs on its streams until they are closed.

`python -m polyolo.serving.worker FD...`: each descriptor is a connected Unix socket, a stream,
served by a thread of its own. A model that crashes, hangs or leaks does it here, where nothing
else lives. The process listens nowhere and writes nothing.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from polyolo.errors import PolyoloError
from polyolo.lifeline import die_with_parent, keep_memory_private
from polyolo.serving.wire import LENGTHS, Job, Opened, Opening, frame, split

if TYPE_CHECKING:
    from polyolo.serving.detector import Detector
    from polyolo.serving.pipeline import Pipeline

T = TypeVar("T")

_MOST_BYTES = 256 * 1024 * 1024  # of a frame: a batch of a dozen of the largest pictures


def main(descriptors: Sequence[int]) -> None:
    """Open the model that the first frame names, then serve the streams until they are closed."""
    die_with_parent()
    keep_memory_private()
    from polyolo.serving.image import configure_opencv
    from polyolo.serving.pipeline import Pipeline

    configure_opencv()
    streams = [Stream(socket.socket(fileno=descriptor)) for descriptor in descriptors]
    opening, _ = streams[0].receive(Opening)
    try:
        detector = _open(opening)
    except Exception as error:  # noqa: BLE001  # whatever it is, the tenant is told
        streams[0].send(Opened(refused=_reason(error)))
        return
    streams[0].send(
        Opened(
            family=detector.head.family,
            input=detector.head.input.shape,
            engine=detector.engine.name,
        )
    )
    pipeline = Pipeline(opening.ref, detector)
    threads = [threading.Thread(target=serve, args=(one, pipeline)) for one in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _open(opening: Opening) -> Detector:
    from polyolo.serving import loading

    data = loading.read_file(Path(opening.path), opening.digest)
    return loading.open_detector(data, family=opening.family, classes=opening.classes)


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
    with contextlib.suppress(EOFError, OSError):  # the runtime has closed it, or is gone
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

    def receive(self, kind: type[T]) -> tuple[T, memoryview]:
        """Wait for a frame; return its header as `kind`, and the rest. Raises EOFError."""
        header_size, size = LENGTHS.unpack(self._exactly(LENGTHS.size))
        if header_size + size > _MOST_BYTES:
            raise EOFError("the stream is out of step")
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
