"""The words between a runtime and the process of one of its models, over a socket pair.

A frame is a header of msgpack and the bytes that it counts: `<I` length of the header, `<Q`
length of the rest, header, rest. Both ends are ours and of one version; a model cannot write
frames unless it has taken its process over, and then it can only lie about its own answers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from polyolo.serving.imagecheck import ImageHeader
from polyolo.types import DetectionSettings, ModelRef, Timing

LENGTHS = struct.Struct("<IQ")

_MOST_BYTES = 256 * 1024 * 1024
"""Of a frame: a batch of a dozen of the largest pictures. A longer one is none of ours."""

ARRAYS = "application/x-polyolo-arrays"
"""Form of an answer for tensor protocols: float32 xyxy [N,4], float32 confidence [N], int32
class_id [N], one after the other, little-endian."""

COMPARISON = "application/x-polyolo-comparison"
"""Form of an answer that is not meant for who sent the picture: list[ClassCounts] as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a model's process is to open: its first frame in."""

    ref: ModelRef
    path: str
    digest: str
    key: str = field(default="", repr=False)
    """Opens the file, in hex, where it is sealed."""
    classes: tuple[str, ...]
    family: str | None
    streams: int
    """Batches under way at once."""
    engine: str = ""
    """As in VersionSpec, as the next two."""
    precision: str = "exact"
    golden: tuple[str, ...] = ()
    """Paths."""
    arithmetic: str = ""
    """What to compute in, where it was chosen before: nothing is measured again then."""
    input_size: int = 0
    """As in VersionSpec."""
    gently: bool = False
    """Whether others are served meanwhile, before whom this takes second place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What became of it: the first frame out."""

    refused: str = ""
    """Why it cannot be served, in a sentence; else empty, and the rest is set."""
    family: str = ""
    input: tuple[int, ...] = ()
    engine: str = ""
    device: str = ""
    precision: str = ""
    speed: str = ""
    quality: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a version on trial is compared with: another one's answer for the same picture."""

    size: int
    """Bytes of that answer; it follows the picture."""
    media_type: str
    """Its form: JSON or arrays."""
    classes: tuple[str, ...]
    """Class names by id of the version that gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture to look at; its encoded bytes follow the header."""

    size: int
    """Bytes of the encoded picture, and of what it is compared with."""
    header: ImageHeader
    settings: DetectionSettings
    request_id: str
    media_type: str
    """Of the answer: JSON, the annotated picture's, arrays for tensor protocols, a comparison."""
    cold_start: bool = False
    received: float = 0.0
    """When the picture had arrived, in seconds of the monotonic clock (the machine's, so the
    same in every process)."""
    queued: float = 0.0
    """When the request began to wait for a stream."""
    against: Against | None = None
    """Set where the answer is to be a comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one job; the encoded answer follows the header."""

    size: int = 0
    """Bytes of the encoded answer."""
    timing: Timing | None = None
    error: str = ""
    """Code of the error (polyolo.errors) that stands in the place of an answer; else empty."""
    detail: str = ""
    count: int = 0
    """Detections found."""


def frame(header: object, parts: Sequence[bytes] = ()) -> list[bytes]:
    """Return a frame as the pieces to write, none of them copied."""
    encoded = msgspec.msgpack.encode(header)
    return [LENGTHS.pack(len(encoded), sum(map(len, parts))), encoded, *parts]


def lengths(start: bytes | memoryview) -> tuple[int, int]:
    """Read a frame's first bytes: length of header and rest. Raises ValueError if it is none."""
    header_size, size = LENGTHS.unpack(start)
    if header_size + size > _MOST_BYTES:
        raise ValueError("the stream is out of step")
    return header_size, size


def split(rest: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Cut a frame's rest into the parts that its header counts. Raises ValueError if it lies."""
    if sum(sizes) != len(rest) or any(size < 0 for size in sizes):
        raise ValueError("a frame's parts do not add up")
    parts, at = [], 0
    for size in sizes:
        parts.append(rest[at : at + size])
        at += size
    return parts
