"""What the Open Inference Protocol v2 says to a detector, whatever transport carries it.

One input, encoded pictures; four outputs, padded with zeros to the picture with most detections.
No numpy: the arrays come from the model's process as bytes and go out as bytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import polyolo
from polyolo.errors import (
    InvalidValueError,
    MalformedRequestError,
    NotFoundError,
    PolyoloError,
    TooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
)
from polyolo.serving.params import SETTINGS, Asked, read_settings, read_version
from polyolo.serving.repository import Lease
from polyolo.serving.runtime import Found, Reached, Request, Runtime
from polyolo.serving.wire import ARRAYS

MOST_PICTURES = 64
"""Pictures in one request: half of a model's queue, so that two such requests do not shut it."""

EXTENSIONS = ("binary_tensor_data",)

_PLATFORM = "polyolo_onnx"  # by the protocol's rule <project>_<format>
_OF_A_PICTURE = MalformedRequestError, TooLargeError, UndecodableImageError, UnsupportedImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Name, datatype and shape of a tensor; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output tensor with its elements, little-endian, row by row."""

    tensor: Tensor
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """What the server says of itself."""

    name: str = "polyolo"
    version: str = polyolo.__version__
    extensions: tuple[str, ...] = EXTENSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What the server says of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An inference request as far as the transports differ."""

    asked: Asked
    pictures: Sequence[bytes]
    outputs: tuple[str, ...]
    """The outputs to return, in this order."""


IMAGE = Tensor(name="image", datatype="BYTES", shape=(-1,))
"""The encoded pictures (JPEG, PNG, WebP, BMP), one an element."""

OUTPUTS = (
    Tensor(name="num_dets", datatype="INT32", shape=(-1, 1)),
    Tensor(name="det_boxes", datatype="FP32", shape=(-1, -1, 4)),
    Tensor(name="det_scores", datatype="FP32", shape=(-1, -1)),
    Tensor(name="det_classes", datatype="INT32", shape=(-1, -1)),
)
"""Of N pictures whose largest number of detections is M, which may be 0: how many each has [N,1];
x1, y1, x2, y2 in pixels of the upright picture [N,M,4]; confidence [N,M]; class id [N,M]."""

_BY_NAME = {tensor.name: tensor for tensor in OUTPUTS}


def asked(model: str, version: str, parameters: Mapping[str, str]) -> Asked:
    """Return what a request asks for, as `POST /v1/detect` would from its query.

    version: empty for the current one. parameters: of the request, as text. Raises
    InvalidValueError, NotFoundError.
    """
    for name in parameters:
        if name not in SETTINGS:
            known = ", ".join(sorted(SETTINGS))
            raise InvalidValueError(f"there is no parameter {name[:40]!r}; there are {known}")
    number = read_version(model, version) if version else None
    return Asked(name=model, version=number, overrides=read_settings(parameters))


def check_input(names: Sequence[str], datatype: str, shape: Sequence[int]) -> int:
    """Return how many pictures the one input holds.

    names: of all inputs; datatype and shape: of the first. Raises MalformedRequestError,
    InvalidValueError.
    """
    if list(names) != [IMAGE.name]:
        said = ", ".join(name[:40] for name in names[:4]) or "none"
        raise MalformedRequestError(f"a model has one input, image; the request has: {said}")
    if datatype != IMAGE.datatype:
        raise MalformedRequestError(
            f"the input image has datatype BYTES, an encoded picture an element; not "
            f"{datatype[:20]!r}"
        )
    count = shape[0] if shape else 0
    if count < 1 or list(shape[1:]) not in ([], [1]):
        said = ",".join(str(size) for size in shape[:8])
        raise MalformedRequestError(f"the input image has shape [N] or [N,1], not [{said}]")
    if count > MOST_PICTURES:
        raise InvalidValueError(
            f"a request may hold at most {MOST_PICTURES} pictures, not {count}; send several"
        )
    return count


def check_count(pictures: Sequence[bytes], count: int) -> None:
    """Raise MalformedRequestError unless there are as many pictures as the shape says."""
    if len(pictures) != count:
        raise MalformedRequestError(
            f"the input image has {len(pictures)} elements; its shape says {count}"
        )


def split_bytes(raw: bytes | memoryview, count: int) -> list[bytes]:
    """Return the elements of a BYTES tensor: each a little-endian uint32 and so many bytes.

    Raises MalformedRequestError unless there are `count` of them and nothing else.
    """
    pictures: list[bytes] = []
    at = 0
    while at < len(raw) and len(pictures) <= count:
        size = int.from_bytes(raw[at : at + 4], "little")
        end = at + 4 + size
        if end > len(raw):  # a length that is cut off itself, too
            raise MalformedRequestError(
                "the binary data of the input image ends within an element; each is a 4-byte "
                "little-endian length and so many bytes"
            )
        pictures.append(bytes(raw[at + 4 : end]))
        at = end
    check_count(pictures, count)
    return pictures


def wanted(names: Iterable[str]) -> tuple[str, ...]:
    """Return the outputs to answer with: those named, all for none. Raises
    MalformedRequestError."""
    named = tuple(names)
    for name in named:
        if name not in _BY_NAME:
            raise MalformedRequestError(
                f"there is no output {name[:40]!r}; there are {', '.join(_BY_NAME)}"
            )
    if len(set(named)) != len(named):
        raise MalformedRequestError("an output is asked for twice")
    return named or tuple(_BY_NAME)


def metadata(runtime: Runtime, name: str, version: str = "") -> ModelMetadata:
    """Return what there is to know of a model before calling it. Raises NotFoundError."""
    model = runtime.repository.model(name)
    versions = tuple(str(one.version) for one in model.versions)
    if version and str(read_version(name, version)) not in versions:
        raise NotFoundError(f"there is no model version {name[:80]}:{version[:20]}")
    return ModelMetadata(
        name=name, versions=versions, platform=_PLATFORM, inputs=(IMAGE,), outputs=OUTPUTS
    )


def why_not(runtime: Runtime, name: str, version: str = "") -> str:
    """Say why a model would not answer now; empty when it would. Raises NotFoundError."""
    return runtime.repository.why_not(name, read_version(name, version) if version else None)


async def infer(
    runtime: Runtime, question: Question, request_id: str, reached: Reached
) -> tuple[list[Output], list[Found]]:
    """Find the objects in all pictures of a request, which are queued at once.

    Raises what Runtime.served and look raise, for the first picture that fails, naming it; the
    others are withdrawn.
    """
    request = Request(asked=question.asked, request_id=request_id, media_type=ARRAYS)
    found = await runtime.served(
        question.asked,
        request_id,
        reached,
        lambda lease: _look(runtime, lease, question.pictures, request),
    )
    return _outputs(found, question.outputs), found


async def _look(
    runtime: Runtime, lease: Lease, pictures: Sequence[bytes], request: Request
) -> list[Found]:
    async def look(index: int, picture: bytes) -> Found:
        try:
            return await runtime.look(lease, picture, request)
        except _OF_A_PICTURE as error:
            raise type(error)(f"image[{index}]: {error.detail}") from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(look(index, picture)) for index, picture in enumerate(pictures)
            ]
    except ExceptionGroup as failed:
        error = failed.exceptions[0]
        raise (error.with_traceback(None) if isinstance(error, PolyoloError) else error) from None
    return [task.result() for task in tasks]


def _outputs(found: Sequence[Found], names: Iterable[str]) -> list[Output]:
    """Put the pictures' arrays (see wire.ARRAYS) one under the other, padded with zeros."""
    counts = [one.answer.count for one in found]
    n, most = len(counts), max(counts)

    def column(offset: int, size: int) -> bytes:
        # offset, size: bytes a detection has before, and in, the array that is cut out.
        pieces = []
        for one, count in zip(found, counts, strict=True):
            pieces.append(one.body[offset * count : (offset + size) * count])
            pieces.append(bytes(size * (most - count)))
        return b"".join(pieces)

    arrays: dict[str, tuple[tuple[int, ...], bytes]] = {
        "num_dets": ((n, 1), struct.pack(f"<{n}i", *counts)),
        "det_boxes": ((n, most, 4), column(0, 16)),
        "det_scores": ((n, most), column(16, 4)),
        "det_classes": ((n, most), column(20, 4)),
    }
    outputs = []
    for name in names:
        shape, raw = arrays[name]
        outputs.append(Output(tensor=replace(_BY_NAME[name], shape=shape), raw=raw))
    return outputs


def numbers(output: Output) -> list[int | float]:
    """Return the elements of an output as numbers, for JSON."""
    kind = "f" if output.tensor.datatype == "FP32" else "i"
    return list(struct.unpack(f"<{len(output.raw) // 4}{kind}", output.raw))
