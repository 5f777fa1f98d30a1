"""What clients send to the control API, and the shapes of lists that it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from polyolo.errors import InvalidValueError
from polyolo.types import ApiKey, Model, Tenant, TenantState, Usage

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_S = 10 * 366 * 86400
"""A key's longest life; whoever wants longer gives no end."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt field is an error, not a no-op


class NewTenant(_Body):
    """A tenant to be made."""

    name: str = Field(examples=["acme"])
    plan: str | None = Field(None, description="Default: the platform's first plan.")


class TenantChange(_Body):
    """What an operator may change of a tenant."""

    state: TenantState


class NewKey(_Body):
    """An API key to be made."""

    name: str = Field("", max_length=100)
    scopes: list[str] | None = Field(None, description="Default: all that the caller has.")
    expires_in: int | str | None = Field(
        None, description="Seconds, or 90d, 12h, 30m. Default: never.", examples=["90d"]
    )


class Use(_Body):
    """The version to put in use."""

    version: Annotated[int, Field(ge=1)]


class SettingsChange(_Body):
    """Settings to change; a field left out stays, null puts it back to its default."""

    confidence: float | None = Field(None, json_schema_extra={"minimum": 0, "maximum": 1})
    iou: float | None = Field(None, json_schema_extra={"minimum": 0, "maximum": 1})
    classes: list[int | str] | None = Field(None, description="Ids or names; null: all.")
    max_detections: int | None = Field(None, json_schema_extra={"minimum": 1, "maximum": 1000})


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantList:
    """All tenants."""

    tenants: list[Tenant]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """A tenant's keys."""

    keys: list[ApiKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """A tenant's models, the standard one included."""

    models: list[Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageList:
    """The use of every tenant."""

    usage: list[Usage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What every error looks like (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


def duration(given: int | str | None) -> float | None:
    """Return seconds of `90d`, `12h`, `30m`, `45s`, `2w` or a number; None for None."""
    if given is None:
        return None
    match = re.fullmatch(r"([0-9]{1,10})([smhdw]?)", str(given))
    seconds = int(match[1]) * _UNITS[match[2] or "s"] if match else 0
    if not 1 <= seconds <= _LONGEST_S:
        raise InvalidValueError(
            "expires_in must be a time of 1 second to 10 years, as 90d, 12h, 30m or seconds"
        )
    return float(seconds)


def moment(given: str | None, field: str, default: float) -> float:
    """Return unix seconds of a number, a date or an RFC 3339 time (UTC if it does not say)."""
    if given is None:
        return default
    if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", given):
        return float(given)
    try:
        parsed = datetime.fromisoformat(given)
    except ValueError:
        raise InvalidValueError(
            f"{field} must be unix seconds, a date (2026-01-31) or a time (2026-01-31T08:00:00Z)"
        ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def month_start(now: float) -> float:
    """Return the beginning of the month, UTC, that `now` (unix seconds) lies in."""
    today = datetime.fromtimestamp(now, UTC)
    return datetime(today.year, today.month, 1, tzinfo=UTC).timestamp()
