"""Reads what a detection request asks for out of its query and headers, refusing what is not there.

A parameter with a typo is refused rather than ignored: its sender would take the default's
boxes for the ones asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from polyolo.errors import InvalidValueError, NotFoundError
from polyolo.types import DetectionSettings

SETTINGS = frozenset({"confidence", "iou", "classes", "max_detections"})
KNOWN = frozenset({"model"}) | SETTINGS

JSON, JPEG, PNG = "application/json", "image/jpeg", "image/png"

_SHORTEST_MS, _LONGEST_MS = 1, 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request's query asks for."""

    name: str | None = None
    """The model's name; None: the default model."""
    version: int | None = None
    """None: the model's current version."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Fields of DetectionSettings that the request sets, each in its range."""

    def settings(self, defaults: DetectionSettings) -> DetectionSettings:
        """Return the model's settings with this request's in their place."""
        return replace(defaults, **dict(self.overrides)) if self.overrides else defaults


_NOTHING = Asked()


def read_query(query: bytes) -> Asked:
    """Read a detection's query string. Raises InvalidValueError naming field and range."""
    if not query:
        return _NOTHING
    values: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in KNOWN:
            known = ", ".join(sorted(KNOWN))
            raise InvalidValueError(f"there is no parameter {name[:40]!r}; there are {known}")
        if name in values:
            raise InvalidValueError(f"{name} is given twice")
        values[name] = value
    model = values.pop("model", None)
    reference = (None, None) if model is None else _model(model)
    return Asked(name=reference[0], version=reference[1], overrides=read_settings(values))


def read_settings(values: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """Read the settings that a request overrides, given as text, into `Asked.overrides`.

    values: by field, all in SETTINGS. Raises InvalidValueError naming field and range.
    """
    overrides = tuple((field, _READERS[field](field, value)) for field, value in values.items())
    try:
        DetectionSettings(**dict(overrides))
    except ValueError as error:
        raise InvalidValueError(str(error)) from None
    return overrides


def _model(text: str) -> tuple[str, int | None]:
    name, colon, number = text.partition(":")
    return name, read_version(name, number) if colon else None


def read_version(name: str, number: str) -> int:
    """Read the number of a model's version. Raises NotFoundError for what is no number."""
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        text = f"{name}:{number}"[:80]
        raise NotFoundError(f"there is no model {text!r}; a version is a number, as in city:3")
    return int(number)


def _number(field: str, text: str) -> float:
    try:
        return float(text)  # NaN and infinities are out of every field's range
    except ValueError:
        raise InvalidValueError(
            f"{field} must be a number between 0 and 1, not {text[:40]!r}"
        ) from None


def _count(field: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidValueError(f"{field} must be 1 to 1000, not {text[:40]!r}") from None


def _classes(field: str, text: str) -> tuple[int | str, ...]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise InvalidValueError(f"{field} must be class ids or names with commas between them")
    return tuple(
        int(item) if item.isascii() and item.isdigit() and len(item) < 10 else item
        for item in items
    )


_READERS: dict[str, Callable[[str, str], Any]] = {
    "confidence": _number,
    "iou": _number,
    "max_detections": _count,
    "classes": _classes,
}


def read_accept(accept: str | None) -> str:
    """Return the media type to answer in: JSON, or the annotated picture as JPEG or PNG.

    The first of the client's most wanted types that there is; JSON when there is none of them.
    """
    if accept is None or accept in ("*/*", JSON):
        return JSON
    ranges: list[tuple[float, str]] = []
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges.append((float(quality), media))
        except ValueError:
            continue
    ranges.sort(key=lambda one: -one[0])  # stable: the client's order among equals
    for weight, media in ranges:
        if weight <= 0:
            break
        if media in _ANSWERS:
            return _ANSWERS[media]
    return JSON


_ANSWERS = {
    JSON: JSON,
    "application/*": JSON,
    "*/*": JSON,
    JPEG: JPEG,
    "image/*": JPEG,
    PNG: PNG,
}


def read_timeout(header: str | None, default_s: float) -> float:
    """Return the seconds a request may take, from its Polyolo-Timeout-Ms header."""
    if header is None:
        return default_s
    if not (header.isascii() and header.isdigit() and len(header) < 10):
        milliseconds = 0
    else:
        milliseconds = int(header)
    if not _SHORTEST_MS <= milliseconds <= _LONGEST_MS:
        raise InvalidValueError(
            f"Polyolo-Timeout-Ms must be {_SHORTEST_MS} to {_LONGEST_MS} milliseconds, "
            f"not {header[:20]!r}"
        )
    return milliseconds / 1e3
