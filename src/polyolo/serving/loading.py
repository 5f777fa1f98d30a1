"""Turns a model's file into a detector that has answered a test picture; in a worker's process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyolo.errors import ModelRefusedError
from polyolo.serving.detector import Detector, resolve
from polyolo.serving.engines import onnxruntime
from polyolo.serving.heads import class_names, recognise
from polyolo.types import DetectionSettings


def read_file(path: Path, digest: str) -> bytes:
    """Read a version's file and hold it against its sha256.

    The bytes that were checked are the bytes that get opened: a file replaced meanwhile does
    not matter. Raises OSError, ModelRefusedError.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelRefusedError("its file is not the one that was pushed: its sha256 differs")
    return data


def open_detector(data: bytes, *, family: str | None, classes: Sequence[str]) -> Detector:
    """Open a model's bytes, recognise its head and try it on a test picture.

    family: None to recognise it. classes: names supplied beside the file. Blocks for tens of
    milliseconds to seconds. Raises ModelRefusedError with the reason for what cannot be served,
    InvalidValueError for class names that do not fit, ModelFailedError for what fails on the
    picture.
    """
    engine = onnxruntime.open_engine(data)
    head = recognise(engine.signature, family)
    names = class_names(engine.signature, head.classes, classes)
    detector = Detector(engine, head, names)
    detector.detect([_test_picture()], [resolve(DetectionSettings(), names)])
    return detector


def _test_picture() -> NDArray[np.uint8]:
    """Return uint8 [96,128,3]: gradients, since a plain colour is 0/0 to some normalisations."""
    y, x = np.mgrid[0:96, 0:128].astype(np.uint8)
    return np.stack([x * 2, y * 2, x ^ y], axis=-1)
