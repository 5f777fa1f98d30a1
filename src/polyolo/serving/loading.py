"""Turns a model's file into a detector that has answered a test picture; in a worker's process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyolo import sealedfile
from polyolo.errors import ModelRefusedError
from polyolo.sealedfile import SealedFileError
from polyolo.serving import torchfile
from polyolo.serving.detector import Detector, resolve
from polyolo.serving.engines import Options, able, open_engine
from polyolo.serving.heads import class_names, recognise
from polyolo.types import DetectionSettings


def read_file(path: Path, digest: str, key: str = "") -> bytes:
    """Read a version's file, sealed or not, and hold its plain bytes against their sha256.

    key: of the tenant's sealed files, in hex. The bytes that were checked are the bytes that get
    opened: a file replaced meanwhile does not matter. Raises OSError, ModelRefusedError.
    """
    try:
        data = sealedfile.read(path, key, digest)
    except SealedFileError as error:
        raise ModelRefusedError(f"its file cannot be opened: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelRefusedError("its file is not the one that was pushed: its sha256 differs")
    return data


def open_detector(
    data: bytes,
    *,
    family: str | None,
    classes: Sequence[str],
    engine: str = "",
    input_size: int = 0,
    options: Options | None = None,
) -> Detector:
    """Open a model's bytes, recognise its head and try it on a test picture.

    family: None to recognise it. classes: names supplied beside the file. engine: empty for the
    usual one of this kind of file. input_size: as in VersionSpec. Blocks for tens of milliseconds
    to seconds. Raises ModelRefusedError with the reason for what cannot be served,
    InvalidValueError for class names that do not fit, ModelFailedError for what fails on the
    picture.
    """
    opened = open_engine(engine or usual_engine(data), data, options)
    head = recognise(opened.signature, family, input_size)
    names = class_names(opened.signature, head.classes, classes)
    detector = Detector(opened, head, names)
    detector.detect([test_picture()], [resolve(DetectionSettings(), names)])
    return detector


def usual_engine(data: bytes) -> str:
    """Name the engine for a file of this kind where nobody asks for another."""
    return next(iter(able(data)), "torch" if torchfile.kind(data) else "onnxruntime")


def test_picture() -> NDArray[np.uint8]:
    """Return uint8 [96,128,3] of gradients, since a plain colour is 0/0 to some normalisations."""
    y, x = np.mgrid[0:96, 0:128].astype(np.uint8)
    return np.stack([x * 2, y * 2, x ^ y], axis=-1)
