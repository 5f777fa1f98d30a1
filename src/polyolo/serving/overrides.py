"""Settings that whoever runs this process gives it, over what the spec says: environment and file.

What a request asks for comes first, then the file, then the environment, then the spec, which
carries what was set by API and command line. The file is looked at again and again, so that a
change is in force within a second; one that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from polyolo import telemetry
from polyolo.resources import ModelSettings
from polyolo.types import DetectionSettings, ModelSpec, RuntimeSpec

EVERY = "*"
"""Stands for every model in a document."""
LOOK_S = 0.25
"""Between two looks at the file."""
_DETECTION = tuple(msgspec.to_builtins(DetectionSettings()))
_OPENING = ("engine", "precision", "input_size")
FIELDS = (*_DETECTION, *_OPENING)
"""What may be set; as in the API's settings of a model."""
_NUMBERS: Mapping[str, Callable[[str], Any]] = {
    "confidence": float,
    "iou": float,
    "max_detections": int,
    "input_size": int,
}

Document = Mapping[str, Mapping[str, Any]]
"""Fields by the name of a model, or by `EVERY`."""

log = telemetry.logger("overrides")


def in_environment(environment: Mapping[str, str]) -> Document:
    """Return what POLYOLO_CONFIDENCE, POLYOLO_CLASSES and the like say of every model.

    Raises ValueError naming variable and range.
    """
    given: dict[str, Any] = {}
    for field in FIELDS:
        name = f"POLYOLO_{field.upper()}"
        text = environment.get(name, "").strip()
        if not text:
            continue
        if field == "classes":
            parts = [part.strip() for part in text.split(",")]
            given[field] = [int(one) if one.isdecimal() else one for one in parts if one]
            continue
        try:
            given[field] = _NUMBERS[field](text) if field in _NUMBERS else text
        except ValueError:
            raise ValueError(f"{name} must be a number, not {text[:40]!r}") from None
    return _checked({EVERY: given} if given else {}, "the environment")


def in_file(path: Path) -> Document:
    """Return what a file says, a JSON object of fields by model. Raises OSError, ValueError."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the settings in {path} cannot be used: {error}") from None
    return _checked(document, str(path))


def applied(spec: RuntimeSpec, *documents: Document) -> RuntimeSpec:
    """Return a spec with the settings of documents in the place of its own, later ones first."""
    return replace(spec, models=tuple(_model(one, documents) for one in spec.models))


class Overrides:
    """What is in force over the spec. For one event loop."""

    def __init__(self, file: Path | None, environment: Mapping[str, str]) -> None:
        """Read both. Raises OSError or ValueError for what cannot be used."""
        self._file = file
        self._environment = in_environment(environment)
        self._stamp = self._now()
        self._document = in_file(file) if file is not None else {}

    def apply(self, spec: RuntimeSpec) -> RuntimeSpec:
        """Return the spec that is to be in force."""
        return applied(spec, self._environment, self._document)

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the file has become another one, for ever."""
        while self._file is not None:
            await asyncio.sleep(LOOK_S)
            stamp = self._now()
            if stamp == self._stamp or stamp is None:
                continue
            self._stamp = stamp
            try:
                self._document = in_file(self._file)
            except (OSError, ValueError) as error:
                log.error("the settings were not taken over", reason=str(error))
            else:
                log.info("settings taken over", file=str(self._file))
                changed()

    def _now(self) -> tuple[int, int, int] | None:
        try:
            seen = self._file.stat() if self._file is not None else None
        except OSError:
            return None  # just being replaced, perhaps
        return None if seen is None else (seen.st_mtime_ns, seen.st_size, seen.st_ino)


def _model(model: ModelSpec, documents: tuple[Document, ...]) -> ModelSpec:
    given: dict[str, Any] = {}
    for document in documents:
        given |= {**document.get(EVERY, {}), **document.get(model.name, {})}
    if not given:
        return model
    settings = msgspec.to_builtins(model.settings)
    settings |= {field: given[field] for field in _DETECTION if field in given}
    opening = {field: given[field] for field in _OPENING if field in given}
    return replace(
        model,
        settings=msgspec.convert(settings, DetectionSettings),
        versions=tuple(replace(one, **opening) for one in model.versions),
    )


def _checked(document: Document, where: str) -> Document:
    for name, fields in document.items():
        for field in fields:
            if field not in FIELDS:
                known = ", ".join(FIELDS)
                raise ValueError(
                    f"{where}: there is no setting {field[:40]!r} of {name}; there are {known}"
                )
        try:
            msgspec.convert(fields, ModelSettings)
        except ValueError as error:
            raise ValueError(f"{where}, settings of {name}: {error}") from None
    return document
