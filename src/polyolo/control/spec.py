"""From rows to the document that a runtime is started with: one pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from polyolo.control.service import rollouts, tuning
from polyolo.control.service.versions import fallback
from polyolo.types import (
    MOUNTED,
    STANDARD,
    DetectionSettings,
    ModelSpec,
    Plan,
    RuntimeSpec,
    VersionSpec,
)

Row = Any
"""A row of SQLAlchemy, with a field for each selected column."""


def runtime_spec(
    tenant: Row,
    generation: int,
    models: Iterable[Row],
    versions: Iterable[Row],
    standard: Row | None,
    golden: Mapping[str, Sequence[str]],
    locate: Callable[[str, str], str],
    plan: Plan,
    release: str = "",
    storage: str = "",
) -> RuntimeSpec:
    """Return the desired state of a tenant's runtime.

    versions: rows of the table of that name joined with their artifact. standard: the standard
    model's artifact with its `version`. golden: digests of each model's golden pictures. locate:
    where a tenant's file with a digest is read. plan: the one in force. release: of the runtime's
    program. storage: of the tenant's own, which its runtime mounts; empty: none.
    """
    by_model: dict[str, list[Row]] = {}
    for row in sorted(versions, key=lambda row: row.version):
        by_model.setdefault(row.model, []).append(row)
    specs = [
        _model(row, by_model.get(row.name, []), golden.get(row.name, ()), locate, storage)
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
        replicas=max(1, plan.min_replicas),
        max_replicas=plan.max_replicas,
        resources=plan.resources,
        release=release,
        storage=storage,
    )


def _model(
    row: Row,
    versions: Sequence[Row],
    golden: Sequence[str],
    locate: Callable[[str, str], str],
    storage: str,
) -> ModelSpec:
    settings = tuning.read(row)
    pictures = golden if settings.precision == "fast" else ()
    specs = [_version(one, one.version, locate, storage) for one in versions]
    return ModelSpec(
        name=row.name,
        current=row.current,
        versions=tuple(
            replace(
                one,
                engine=settings.engine,
                precision=settings.precision,
                input_size=settings.input_size,
                golden=tuple(locate(row.tenant, digest) for digest in pictures),
            )
            for one in specs
        ),
        settings=msgspec.convert(row.settings, DetectionSettings),
        rollout=rollouts.for_spec(row),
        fallback=fallback(row, {one.version for one in versions if one.taken_out}),
    )


def _version(
    row: Row, number: int, locate: Callable[[str, str], str], storage: str = ""
) -> VersionSpec:
    mounted = storage and row.uri
    return VersionSpec(
        version=number,
        digest=row.digest,
        uri=f"{MOUNTED}{row.uri}" if mounted else locate(row.tenant, row.digest),
        size=row.size,
        classes=tuple(row.classes),
        family=row.family or None,
    )
