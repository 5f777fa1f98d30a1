"""Says what a model file holds: `python -m polyolo.serving inspect FILE`, a throw-away process.

Opening a stranger's file is the riskiest thing that happens at an upload, so it happens in a
process that holds nothing, and that the caller limits and may lose.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from polyolo.errors import ModelFailedError, PolyoloError
from polyolo.serving import loading
from polyolo.serving.image import configure_opencv


def inspect_file(path: Path, classes: Sequence[str]) -> int:
    """Print one JSON object about a model file, or why it is refused; return the exit status.

    classes: names supplied beside the file, by id.
    """
    try:
        found = describe(path.read_bytes(), classes)
    except OSError as error:
        return _refuse(f"the file cannot be read: {error.strerror}")
    except ModelFailedError as error:
        return _refuse(f"it fails on a test picture: {error.detail}")
    except PolyoloError as error:
        return _refuse(error.detail)
    except MemoryError:
        return _refuse("it needs more memory than an inspection may use")
    _print(found)
    return 0


def describe(data: bytes, classes: Sequence[str]) -> dict[str, object]:
    """Load a model's bytes as a runtime would and return its family, classes and input shape."""
    configure_opencv()
    detector = loading.open_detector(data, family=None, classes=classes)
    return {
        "family": detector.head.family,
        "classes": detector.names,
        "input": detector.head.input.shape,
    }


def _refuse(reason: str) -> int:
    _print({"refused": reason})
    return 1


def _print(document: dict[str, object]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.flush()
