"""Tries a model with one engine and one arithmetic: `python -m polyolo.serving.trial`, throw-away.

Takes an Opening on stdin and writes a Trial to stdout, both as msgpack.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from polyolo import sealedfile
from polyolo.errors import InvalidValueError, PolyoloError
from polyolo.lifeline import die_with_parent, keep_memory_private
from polyolo.sealedfile import SealedFileError
from polyolo.serving.choice import Trial
from polyolo.serving.quality import Seen
from polyolo.serving.wire import Opening
from polyolo.types import DetectionSettings

if TYPE_CHECKING:
    from polyolo.serving.detector import Detector

_MEASURE_S = 0.5  # a YOLOv8n in float32 is run 6 times on each stream; slower ones at least once


def main() -> None:
    """Answer the Opening on stdin."""
    die_with_parent()
    keep_memory_private()
    answer = os.dup(1)
    os.dup2(2, 1)  # what engines print is no answer
    opening = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Opening)
    try:
        trial = attempt(opening)
    except PolyoloError as error:
        trial = Trial(failed=error.detail)
    except MemoryError:
        trial = Trial(failed="it needs more memory than there is")
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.msgpack.encode(trial))


def attempt(opening: Opening) -> Trial:
    """Open a model, measure it and look at its golden pictures. Raises PolyoloError."""
    from polyolo.serving import engines, loading
    from polyolo.serving.image import configure_opencv

    configure_opencv()
    detector = loading.open_detector(
        loading.read_file(Path(opening.path), opening.digest, opening.key),
        family=opening.family,
        classes=opening.classes,
        engine=opening.engine,
        input_size=opening.input_size,
        options=engines.Options(arithmetic=opening.arithmetic, streams=opening.streams),
    )
    seen, blind = [], ""
    if opening.precision == "fast":
        try:
            seen = [_look(detector, one, opening.key) for one in opening.golden]
        except InvalidValueError as error:
            blind = error.detail
    return Trial(
        rate=_rate(detector, opening.streams),
        faster=engines.arithmetics(opening.engine)[1:],
        seen=seen,
        blind=blind,
    )


def _rate(detector: Detector, streams: int) -> float:
    """Return pictures a second with all streams busy, as in service."""
    from polyolo.serving.detector import resolve
    from polyolo.serving.loading import test_picture

    picture, criteria = test_picture(), resolve(DetectionSettings(), detector.names)
    counts = [0] * streams

    def run(stream: int) -> None:
        warm.wait()
        detector.detect([picture], [criteria])  # each stream has buffers of its own to allocate
        ready.wait()
        until = time.perf_counter() + _MEASURE_S
        while counts[stream] == 0 or time.perf_counter() < until:
            detector.detect([picture], [criteria])
            counts[stream] += 1

    warm, ready = threading.Barrier(streams), threading.Barrier(streams + 1)
    threads = [threading.Thread(target=run, args=(one,)) for one in range(streams)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def _look(detector: Detector, picture: str, key: str) -> Seen:
    from polyolo.serving.detector import resolve
    from polyolo.serving.image import decode
    from polyolo.serving.imagecheck import ImageLimits, read_header
    from polyolo.serving.pipeline import seen

    try:
        data = sealedfile.read(Path(picture), key, Path(picture).stem)
    except OSError as error:
        raise _unreadable(picture, error.strerror or "") from None
    except SealedFileError as error:
        raise _unreadable(picture, str(error)) from None
    try:
        pixels = decode(data, read_header(data, ImageLimits()))
    except PolyoloError as error:
        raise _unreadable(picture, error.detail) from None
    criteria = resolve(DetectionSettings(), detector.names)
    return seen(detector.detect([pixels], [criteria]).detections[0])


def _unreadable(picture: str, reason: str) -> PolyoloError:
    return InvalidValueError(f"the golden picture {Path(picture).name} cannot be read: {reason}")


if __name__ == "__main__":
    main()
