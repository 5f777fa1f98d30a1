"""Plans: what the operator offers, read from a file, and what a tenant's own limits make of one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from polyolo.control.names import checked as checked_name
from polyolo.errors import InvalidValueError
from polyolo.types import Plan

Own = dict[str, Any]
"""A tenant's own limits: fields of Plan with their values, those of `resources` below that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What a limit may be."""

    least: float
    most: float
    whole: bool = True
    zero: bool = False
    """0 is allowed besides, with a meaning of its own."""

    def check(self, name: str, value: object) -> float:
        """Return the value. Raises InvalidValueError that names the field and its range."""
        number = isinstance(value, int) if self.whole else isinstance(value, int | float)
        if number and not isinstance(value, bool):
            assert isinstance(value, int | float)
            if self.least <= value <= self.most or (self.zero and value == 0):
                return value
        kind = "a whole number" if self.whole else "a number"
        also = "0 or " if self.zero and self.least > 0 else ""
        raise InvalidValueError(
            f"{name} must be {kind}, {also}{self.least:,g} to {self.most:,.15g}, not {value!r}"
        )


RANGES: dict[str, Range] = {
    "requests_per_second": Range(least=0.001, most=1_000_000, whole=False, zero=True),
    "burst": Range(least=0, most=1_000_000),
    "max_in_flight": Range(least=1, most=100_000),
    "images_per_month": Range(least=0, most=10**12),
    "max_models": Range(least=0, most=10_000),
    "max_model_bytes": Range(least=1, most=1 << 40),
    "weight": Range(least=0.01, most=100, whole=False),
    "min_replicas": Range(least=0, most=100),
    "max_replicas": Range(least=1, most=100),
    "idle_s": Range(least=0.1, most=31_536_000, whole=False),
}
RESOURCES: dict[str, Range] = {
    "cpus": Range(least=0.01, most=1024, whole=False, zero=True),
    "memory_bytes": Range(least=64 << 20, most=1 << 44),
    "processes": Range(least=16, most=100_000),
    "gpus": Range(least=0, most=64, whole=False),
}

OFFERED = (
    Plan(name="default"),
    Plan(
        name="free",
        requests_per_second=2.0,
        burst=10,
        max_in_flight=16,
        images_per_month=1_000,
        max_models=2,
        max_model_bytes=64 << 20,
        weight=0.5,
        idle_s=300.0,
    ),
    Plan(name="pro", max_in_flight=512, max_models=100, weight=4.0, min_replicas=1, max_replicas=4),
)
"""The plans of a platform whose operator names none. A tenant gets the first one, which asks for
nothing but the tenant's fair share: whoever runs polyolo for themselves wants no limits."""


def checked(values: Mapping[str, Any]) -> Own:
    """Return limits as they are stored: only known fields, each in its range; None stays.

    Raises InvalidValueError that names the field.
    """
    own: Own = {}
    for name, value in values.items():
        if name == "resources":
            if not isinstance(value, Mapping):
                raise InvalidValueError("resources must be a table: cpus, memory_bytes, …")
            own[name] = {key: _checked(key, value[key], RESOURCES, "resources.") for key in value}
        else:
            own[name] = _checked(name, value, RANGES, "")
    return own


def _checked(name: str, value: Any, known: Mapping[str, Range], prefix: str) -> float | None:
    if name not in known:
        raise InvalidValueError(f"there is no limit {prefix}{name}; there are {', '.join(known)}")
    return None if value is None else known[name].check(prefix + name, value)


def merged(own: Own, changes: Own) -> Own:
    """Return a tenant's own limits after a change; None in it puts a field back to the plan's."""
    after = {**own, **{k: v for k, v in changes.items() if k != "resources"}}
    resources = {**own.get("resources", {}), **changes.get("resources", {})}
    kept = {name: value for name, value in resources.items() if value is not None}
    after = {k: v for k, v in after.items() if v is not None and k != "resources"}
    return {**after, "resources": kept} if kept else after


def named(name: str, plans: Sequence[Plan]) -> Plan:
    """Return the plan of that name; the first one for a name that is no longer offered."""
    return next((plan for plan in plans if plan.name == name), plans[0])


def effective(plan: Plan, own: Own | None) -> Plan:
    """Return what a tenant may use: the plan, single fields replaced by its own limits."""
    if not own:
        return plan
    single = {name: value for name, value in own.items() if name in RANGES}
    resources = {k: v for k, v in own.get("resources", {}).items() if k in RESOURCES}
    found = replace(plan, **single, resources=replace(plan.resources, **resources))
    if found.min_replicas > found.max_replicas:  # a plan that has changed since
        found = replace(found, min_replicas=found.max_replicas)
    return found


def own_fields(own: Own | None) -> tuple[str, ...]:
    """Return the names of the fields that are the tenant's own."""
    single = [name for name in own or () if name != "resources"]
    return (*single, *(f"resources.{name}" for name in (own or {}).get("resources", ())))


def read(path: Path) -> tuple[Plan, ...]:
    """Return the plans in a TOML file, one table [[plan]] each; the first is the usual one.

    Raises InvalidValueError that names file, plan, field and range.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidValueError(f"cannot read the plans in {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is no TOML: {error}") from None
    tables = document.pop("plan", None)
    if document or not isinstance(tables, list) or not tables:
        raise InvalidValueError(f"{path} must hold tables [[plan]], one a plan, and nothing else")
    found: list[Plan] = []
    for table in tables:
        name = table.pop("name", None) if isinstance(table, dict) else None
        if not isinstance(name, str):
            raise InvalidValueError(f"{path}: every [[plan]] needs a name")
        if name in [plan.name for plan in found]:
            raise InvalidValueError(f"{path}: there are two plans {name!r}")
        try:
            checked_name(name, "plan", reserved="")
            own = checked(table)
            plan = effective(Plan(name=name), own)
            if own.get("min_replicas", 0) > plan.max_replicas:
                raise InvalidValueError("min_replicas must not be more than max_replicas")
        except InvalidValueError as error:
            raise InvalidValueError(f"{path}, plan {name!r}: {error.detail}") from None
        found.append(plan)
    return tuple(found)


def stored(own: object) -> Own:
    """Return the own limits in a row's JSON; those of no field any more are left out."""
    found = msgspec.convert(own or {}, dict[str, Any])
    return {name: value for name, value in found.items() if name in {*RANGES, "resources"}}
