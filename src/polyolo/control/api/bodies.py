"""What clients send to the control API, and the shapes of lists that it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from polyolo.errors import InvalidValueError
from polyolo.resources import ApiKey, Invitation, Model, OAuthClient, Tenant, Usage, User
from polyolo.types import TenantState

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_S = 10 * 366 * 86400
"""A key's longest life; whoever wants longer gives no end."""

_SECRET: dict[str, Any] = {"format": "password", "writeOnly": True}
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"  # a line of text; PostgreSQL would refuse a zero byte


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
    sources: list[str] = Field(
        [], description="Networks it may be used from. Default: all.", examples=[["10.0.0.0/8"]]
    )


class Rotation(_Body):
    """How an API key is replaced."""

    overlap: int | str | None = Field(
        None, description="How long the old key goes on working. Default: not.", examples=["1h"]
    )


class NewOAuthClient(_Body):
    """An OAuth client to be made."""

    name: str = Field("", max_length=100)
    scopes: list[str] | None = Field(None, description="Default: all that the caller has.")


Email = Annotated[str, Field(max_length=320, examples=["ann@example.com"])]
Password = Annotated[
    str, Field(max_length=1000, description="10 to 200 characters.", json_schema_extra=_SECRET)
]


class Registration(_Body):
    """A new customer."""

    email: Email
    password: Password
    organization: str = Field(max_length=200, examples=["Acme Inc."])
    invitation: str | None = Field(
        None, max_length=200, description="Its token, where the operator asks for one."
    )


class SignIn(_Body):
    """Somebody's e-mail address and password."""

    email: Email
    password: Password


class PasswordChange(_Body):
    """The password that is, and the one that shall be."""

    old: Password
    new: Password


class RoleChange(_Body):
    """What an owner may change of a user."""

    role: str = Field(description="owner, developer, viewer or billing.", examples=["viewer"])


class NewRegistrationInvitation(_Body):
    """An invitation to register."""

    name: str = Field("", max_length=100, pattern=_PRINTABLE, description="For whom.")
    expires_in: int | str | None = Field(
        None, description="Seconds, or 12h, 30d. Default: 7 days.", examples=["7d"]
    )


class NewInvitation(NewRegistrationInvitation):
    """An invitation to become a user of the tenant."""

    role: str = Field(description="owner, developer, viewer or billing.", examples=["viewer"])


class Acceptance(_Body):
    """An invitation's token, and the account to be made with it."""

    token: str = Field(max_length=200)
    email: Email
    password: Password


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
class OAuthClientList:
    """A tenant's OAuth clients."""

    clients: list[OAuthClient]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserList:
    """A tenant's users."""

    users: list[User]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationList:
    """Invitations, without their tokens."""

    invitations: list[Invitation]


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


def duration(given: int | str | None, field: str = "expires_in") -> float | None:
    """Return seconds of `90d`, `12h`, `30m`, `45s`, `2w` or a number; None for None."""
    if given is None:
        return None
    match = re.fullmatch(r"([0-9]{1,10})([smhdw]?)", str(given))
    seconds = int(match[1]) * _UNITS[match[2] or "s"] if match else 0
    if not 1 <= seconds <= _LONGEST_S:
        raise InvalidValueError(
            f"{field} must be a time of 1 second to 10 years, as 90d, 12h, 30m or seconds"
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
