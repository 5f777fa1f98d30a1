"""Reads a runtime's spec: from its document, and in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from polyolo.errors import InvalidValueError, NotFoundError
from polyolo.serving.shelf import Key
from polyolo.types import STANDARD, ModelSpec, RuntimeSpec, VersionSpec


def read_spec(path: Path) -> RuntimeSpec:
    """Read a runtime spec document. Raises OSError, or ValueError saying what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RuntimeSpec)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the spec document {path} cannot be used: {error}") from None


def loads_ahead(spec: RuntimeSpec, name: str) -> bool:
    """Say whether a model loads before anybody asks for it.

    All do but the platform's own where the tenant has put another in its place: few ask for it
    then, and it would hold the memory of a process in every runtime.
    """
    return name == spec.default_model or name != STANDARD


def current(models: Mapping[str, ModelSpec], name: str) -> Key | None:
    """Return the current version of a model; None where the spec has no such model."""
    model = models.get(name)
    return None if model is None else (name, find(model, model.current))


def find(model: ModelSpec, number: int) -> VersionSpec:
    """Return a version by its number. Raises NotFoundError."""
    for version in model.versions:
        if version.version == number:
            return version
    raise NotFoundError(f"there is no model version {model.name}:{number}")


def check(spec: RuntimeSpec) -> None:
    """Raise InvalidValueError for a spec that contradicts itself."""
    names = [model.name for model in spec.models]
    if len(set(names)) != len(names):
        raise InvalidValueError("the spec names a model twice")
    if spec.default_model not in names:
        raise InvalidValueError(f"the spec has no model {spec.default_model!r}, its default")
    for model in spec.models:
        numbers = [version.version for version in model.versions]
        needed = {model.current, model.fallback or model.current}
        if model.rollout is not None:
            needed.add(model.rollout.version)
        if len(set(numbers)) != len(numbers) or not needed <= set(numbers):
            raise InvalidValueError(
                f"the spec's versions of {model.name} are not unique, or lack one of "
                f"{', '.join(map(str, sorted(needed)))}"
            )
