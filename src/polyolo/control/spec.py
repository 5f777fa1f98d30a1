"""From rows to the document that a runtime is started with: one pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from polyolo.types import STANDARD, DetectionSettings, ModelSpec, RuntimeSpec, VersionSpec

Row = Any
"""A row of SQLAlchemy, with a field for each selected column."""


def runtime_spec(
    tenant: Row,
    generation: int,
    models: Iterable[Row],
    versions: Iterable[Row],
    standard: Row | None,
    locate: Callable[[str], str],
) -> RuntimeSpec:
    """Return the desired state of a tenant's runtime.

    versions: rows of the table of that name joined with their artifact. standard: the standard
    model's artifact with its `version`. locate: where the file with a digest is read.
    """
    by_model: dict[str, list[VersionSpec]] = {}
    for row in sorted(versions, key=lambda row: row.version):
        by_model.setdefault(row.model, []).append(_version(row, row.version, locate))
    specs = [
        ModelSpec(
            name=row.name,
            current=row.current,
            versions=tuple(by_model.get(row.name, ())),
            settings=msgspec.convert(row.settings, DetectionSettings),
        )
        for row in sorted(models, key=lambda row: row.name)
    ]
    if standard is not None:
        only = _version(standard, standard.version, locate)
        specs.append(ModelSpec(name=STANDARD, current=only.version, versions=(only,)))
    return RuntimeSpec(
        tenant=tenant.id,
        generation=generation,
        default_model=tenant.default_model or STANDARD,
        models=tuple(specs),
    )


def _version(row: Row, number: int, locate: Callable[[str], str]) -> VersionSpec:
    return VersionSpec(
        version=number,
        digest=row.digest,
        uri=locate(row.digest),
        classes=tuple(row.classes),
        family=row.family or None,
    )
