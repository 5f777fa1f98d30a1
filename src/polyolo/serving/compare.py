"""Compares two versions of a model: `python -m polyolo.serving compare FILE`, throw-away.

FILE is what `polyolo.comparejob` describes. Each version is opened in a process of its own, so
that one that crashes, hangs or hoards says so by that, and leaves the word to the other.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from polyolo.comparejob import MOST_HEADER_BYTES, ExpectedBox, Result, Showing, Sight, Subject, Task
from polyolo.errors import ModelFailedError, ModelRefusedError, PolyoloError
from polyolo.lifeline import die_with_parent
from polyolo.rollouts import ClassCounts, compared
from polyolo.serving import loading, memory
from polyolo.serving.detector import resolve
from polyolo.serving.image import configure_opencv, decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.pipeline import seen
from polyolo.serving.quality import Seen, differences
from polyolo.serving.worker import Stream
from polyolo.types import DetectionSettings

T = TypeVar("T")

_PATIENCE_S = 20.0
"""Seconds to open a version, and to look at a picture; the largest YOLO takes 5, and 1."""


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    refused: str = ""
    classes: tuple[str, ...] = ()


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    refused: str = ""
    boxes: Seen | None = None
    milliseconds: float = 0.0


def compare_file(path: Path) -> int:
    """Do the task in a file and print its result; return the exit status."""
    configure_opencv()
    try:
        with path.open("rb") as file:
            result = compare(file)
    except OSError as error:
        result = Result(refused=f"the comparison cannot be made: {error.strerror}")
    except PolyoloError as error:
        result = Result(refused=error.detail)
    except MemoryError:
        result = Result(refused="it needs more memory than a comparison may use")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.flush()
    return 1 if result.refused else 0


def compare(file: BinaryIO) -> Result:
    """Return what the versions in a file show in its pictures. Raises PolyoloError."""
    task = msgspec.json.decode(file.readline(MOST_HEADER_BYTES), type=Task)
    until = time.monotonic() + task.within_s
    reference = None
    if task.reference is not None:
        reference = _Watched("the version in use", task.reference, file, task.settings)
    candidate = _Watched("the new version", task.candidate, file, task.settings)
    watched = [one for one in (reference, candidate) if one is not None]
    try:
        if reference is not None:
            reference.stand_aside_if(reference.wait_until_open)
        candidate.wait_until_open()
        done = 0
        for sight in task.pictures:
            if done and time.monotonic() > until:
                break
            _look(sight, file.read(sight.size), reference, candidate, task.settings)
            done += 1
        aside = "" if reference is None else reference.aside
        return Result(
            candidate=candidate.showing(),
            reference=None if reference is None or aside else reference.showing(),
            without_reference=aside,
            left_out=len(task.pictures) - done,
        )
    finally:
        for one in watched:
            one.end()


def _look(
    sight: Sight,
    picture: bytes,
    reference: _Watched | None,
    candidate: _Watched,
    settings: DetectionSettings,
) -> None:
    """Have both versions look at a picture, and count what is as expected."""
    theirs = None
    if reference is not None and not reference.aside:
        theirs = reference.stand_aside_if(lambda: reference.look(sight, picture))
    found = candidate.look(sight, picture)
    if sight.expected is not None:
        expected, names = _known(sight.expected)
    elif theirs is not None and reference is not None:
        expected, names = theirs, reference.classes
    else:
        return
    for one, boxes in ((reference, theirs), (candidate, found)):
        if one is not None and boxes is not None:
            one.pictures += 1
            both = names, one.classes
            one.counts += differences(expected, boxes, both, settings.confidence)


def _known(expected: Sequence[ExpectedBox]) -> tuple[Seen, tuple[str, ...]]:
    """Return boxes that are known as boxes that were seen for certain, and their class names."""
    names = tuple(dict.fromkeys(box.class_name for box in expected))
    return (
        Seen(
            xyxy=[box.bbox for box in expected],
            confidence=[1.0] * len(expected),
            class_id=[names.index(box.class_name) for box in expected],
        ),
        names,
    )


class _Watched:
    """One version in a process of its own, and what it has shown."""

    def __init__(
        self, name: str, subject: Subject, file: BinaryIO, settings: DetectionSettings
    ) -> None:
        """Start the process; the version's bytes are read from where the file stands."""
        self.name = name
        self.classes: tuple[str, ...] = ()
        self.pictures = 0
        self.counts: list[ClassCounts] = []
        self.aside = ""
        """Why nothing is made of it any more: it failed, and is not what is in question."""
        self._times: list[float] = []
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE_S)
        data = file.read(subject.size)
        parent = os.getpid()
        self._pid = os.fork()  # the libraries are there already; no thread has been started
        if self._pid == 0:
            ours.close()
            os.environ["POLYOLO_PARENT"] = str(parent)
            die_with_parent()
            _serve(Stream(theirs), data, subject, settings)
        theirs.close()
        self._stream = Stream(ours)

    def stand_aside_if(self, do: Callable[[], T]) -> T | None:
        """Do something, and leave this version out from then on if that fails."""
        try:
            return do()
        except ModelRefusedError as error:
            self.aside = error.detail
            return None

    def wait_until_open(self) -> None:
        """Wait until the version is open. Raises ModelRefusedError."""
        opened = self._receive(_Opened)
        if opened.refused:
            raise ModelRefusedError(f"{self.name} cannot be opened: {opened.refused}")
        self.classes = opened.classes

    def look(self, sight: Sight, picture: bytes) -> Seen:
        """Return what the version sees in a picture. Raises ModelRefusedError."""
        self._stream.send(None, [picture])
        answer = self._receive(_Seen, f" on the picture {sight.name}")
        if answer.boxes is None:
            raise ModelRefusedError(f"the picture {sight.name}: {answer.refused}")
        self._times.append(answer.milliseconds)
        return answer.boxes

    def showing(self) -> Showing:
        """Return what the version has shown."""
        return Showing(
            comparison=compared(self.pictures, self.counts),
            milliseconds=round(statistics.median(self._times), 2) if self._times else 0.0,
            memory_bytes=memory.own(self._pid),
        )

    def end(self) -> None:
        """End the process."""
        self._stream.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _receive(self, kind: type[T], where: str = "") -> T:
        try:
            return self._stream.receive(kind)[0]
        except TimeoutError:
            raise ModelRefusedError(
                f"{self.name} gave no answer within {_PATIENCE_S:.0f} s{where}"
            ) from None
        except (EOFError, OSError):
            raise ModelRefusedError(f"{self.name} ended its process{where}") from None


def _serve(stream: Stream, data: bytes, subject: Subject, settings: DetectionSettings) -> NoReturn:
    """Open a version and look at pictures until there are no more; in a process of its own."""
    try:
        _serve_until_closed(stream, data, subject, settings)
    finally:
        os._exit(0)


def _serve_until_closed(
    stream: Stream, data: bytes, subject: Subject, settings: DetectionSettings
) -> None:
    try:
        detector = loading.open_detector(
            data,
            family=subject.family,
            classes=subject.classes,
            engine=subject.engine,
            input_size=subject.input_size,
        )
        criteria = resolve(settings, detector.names)
    except PolyoloError as error:
        stream.send(_Opened(refused=error.detail))
        return
    except MemoryError:
        stream.send(_Opened(refused="it needs more memory than a comparison may use"))
        return
    del data
    stream.send(_Opened(classes=detector.names))
    while True:
        _, picture = stream.receive(type(None))
        try:
            pixels = decode(picture, read_header(picture, ImageLimits()))
            started = time.perf_counter()
            found = detector.detect([pixels], [criteria]).detections[0]
            took = (time.perf_counter() - started) * 1e3
        except PolyoloError as error:
            stream.send(_Seen(refused=error.detail))
        except MemoryError:
            stream.send(_Seen(refused=ModelFailedError("it takes too much memory").detail))
        else:
            stream.send(_Seen(boxes=seen(found), milliseconds=took))
