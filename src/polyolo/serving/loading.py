"""Turns a model file into a model that has answered a test picture, and frees it at the end.

Loading runs in a thread of its own; what is loaded is used by every stream.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyolo.errors import ModelRefusedError
from polyolo.serving.detector import Detector, resolve
from polyolo.serving.engines import Engine
from polyolo.serving.heads import class_names, recognise
from polyolo.types import DetectionSettings, ModelRef, VersionSpec

OpenEngine = Callable[[bytes], Engine]


class LoadedModel:
    """An open model, closed once it is retired and its last lease is released. Thread-safe."""

    def __init__(
        self,
        ref: ModelRef,
        version: VersionSpec,
        detector: Detector,
        *,
        family: str,
        input: tuple[int, ...],  # noqa: A002  # the name it has in ModelStatus
        engine: str,
        close: Callable[[], None],
    ) -> None:
        self.ref = ref
        self.version = version
        self.detector = detector
        self.family = family
        self.input = input
        self.engine = engine
        self._close = close
        self._lock = threading.Lock()
        self._leases = 0
        self._retired = False

    def __str__(self) -> str:
        return str(self.ref)

    def lease(self) -> bool:
        """Keep the model open until `release`; False when it is retired already."""
        with self._lock:
            if self._retired:
                return False
            self._leases += 1
            return True

    def release(self) -> None:
        """Give one lease back."""
        with self._lock:
            self._leases -= 1
            last = self._retired and self._leases == 0
        if last:
            self._close()

    def retire(self) -> None:
        """Close the model now, or with its last lease."""
        with self._lock:
            last = not self._retired and self._leases == 0
            self._retired = True
        if last:
            self._close()


def read_version(directory: Path, version: VersionSpec) -> bytes:
    """Read a version's file and hold it against its digest.

    The bytes that were checked are the bytes that get opened: a file replaced meanwhile does
    not matter. directory: what a relative uri is relative to. Raises OSError, ModelRefusedError.
    """
    data = (directory / version.uri).read_bytes()
    if hashlib.sha256(data).hexdigest() != version.digest:
        raise ModelRefusedError("its file is not the one that was pushed: its sha256 differs")
    return data


def load(data: bytes, name: str, version: VersionSpec, open_engine: OpenEngine) -> LoadedModel:
    """Open a model's bytes, recognise its head and try it on a test picture.

    Blocks for tens of milliseconds to seconds. Raises ModelRefusedError with the reason for
    what cannot be served, ModelFailedError for what fails on the picture.
    """
    engine = open_engine(data)
    try:
        head = recognise(engine.signature, version.family)
        names = class_names(engine.signature, head.classes, version.classes)
        detector = Detector(engine, head, names)
        detector.detect([_test_picture()], [resolve(DetectionSettings(), names)])
    except BaseException:
        engine.close()
        raise
    return LoadedModel(
        ModelRef(name=name, version=version.version),
        version,
        detector,
        family=head.family,
        input=head.input.shape,
        engine=engine.name,
        close=engine.close,
    )


def _test_picture() -> NDArray[np.uint8]:
    """Return uint8 [96,128,3]: gradients, since a plain colour is 0/0 to some normalisations."""
    y, x = np.mgrid[0:96, 0:128].astype(np.uint8)
    return np.stack([x * 2, y * 2, x ^ y], axis=-1)
