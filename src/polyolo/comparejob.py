"""The words between control and the throw-away process that compares two versions of a model.

The process reads one file: a `Task` as JSON in its first line, then the bytes that it counts,
first the models', then the pictures'. It prints one `Result` as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from polyolo.rollouts import Comparison
from polyolo.types import DetectionSettings

MOST_HEADER_BYTES = 8 << 20
"""Of the first line: a hundred pictures with a thousand expected boxes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A version to be looked through; see VersionSpec."""

    size: int
    """Bytes of its file."""
    family: str | None = None
    classes: tuple[str, ...] = ()
    engine: str = ""
    input_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBox:
    """A box that somebody knows to be there."""

    class_name: str
    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the upright picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A picture to look at."""

    size: int
    """Bytes of the encoded picture."""
    name: str
    """What it is called when it cannot be looked at."""
    expected: tuple[ExpectedBox, ...] | None = None
    """None: nobody knows; what the reference sees is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be compared, and how."""

    candidate: Subject
    reference: Subject | None = None
    """Its bytes come first where there is one."""
    pictures: tuple[Sight, ...] = ()
    settings: DetectionSettings = field(default_factory=DetectionSettings)
    within_s: float = 30.0
    """Seconds after which no further picture is begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """What one version showed."""

    comparison: Comparison
    """With what is expected."""
    milliseconds: float = 0.0
    """Median time for a picture, decoding left out."""
    memory_bytes: int = 0
    """What its process kept for itself at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a task."""

    refused: str = ""
    """Why there is nothing to tell, for the model's owner to read; else empty."""
    candidate: Showing | None = None
    reference: Showing | None = None
    without_reference: str = ""
    """Why there is none although it was asked for: it failed."""
    left_out: int = 0
    """Pictures for which there was no time."""


def packed(task: Task, contents: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Yield the file for a task, in pieces.

    contents: reference (if there is one), candidate, pictures, each in pieces. Raises what they
    raise.
    """
    yield msgspec.json.encode(task) + b"\n"
    for pieces in contents:
        yield from pieces
