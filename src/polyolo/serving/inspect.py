"""Says what a model file holds: `python -m polyolo.serving inspect FILE`, a throw-away process.

Opening a stranger's file is the riskiest thing that happens at an upload, so it happens in a
process that holds nothing, and that the caller limits and may lose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from polyolo.errors import ModelFailedError, PolyoloError
from polyolo.serving import loading, torchfile
from polyolo.serving.engines import ONNX
from polyolo.serving.image import configure_opencv
from polyolo.serving.loading import usual_engine
from polyolo.serving.onnxfile import names


def inspect_file(path: Path, classes: Sequence[str]) -> int:
    """Print one JSON object about a model file, or why it is refused; return the exit status.

    Of what is refused it tells whether it is a checkpoint, which others may be able to convert.
    classes: names supplied beside the file, by id.
    """
    answer = os.dup(1)
    os.dup2(2, 1)  # what engines print is no answer
    try:
        data = path.read_bytes()
        status, document = 0, describe(data, classes)
    except OSError as error:
        status, document = _refused(f"the file cannot be read: {error.strerror}")
    except ModelFailedError as error:
        status, document = _refused(f"it fails on a test picture: {error.detail}")
    except PolyoloError as error:
        status, document = _refused(error.detail)
        if torchfile.is_checkpoint(data):
            document["checkpoint"] = True
    except MemoryError:
        status, document = _refused("it needs more memory than an inspection may use")
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(document) + b"\n")
    return status


def describe(data: bytes, classes: Sequence[str]) -> dict[str, object]:
    """Load a model's bytes as a runtime would and return its family, classes and input shape."""
    configure_opencv()
    detector = loading.open_detector(data, family=None, classes=classes)
    known = names(data) if usual_engine(data) in ONNX else None
    metadata = known.metadata if known else detector.engine.signature.metadata
    return {
        "family": detector.head.family,
        "classes": detector.names,
        "input": detector.head.input.shape,
        "licence": _line(metadata.get("license") or metadata.get("licence") or ""),
        "producer": _line(known.producer) if known else "",
        "opset": known.opset if known else 0,
    }


def _line(text: str) -> str:
    """Return what a file says of itself as one line that fits into a list."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _refused(reason: str) -> tuple[int, dict[str, object]]:
    return 1, {"refused": reason}
