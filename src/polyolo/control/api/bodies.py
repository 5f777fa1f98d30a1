"""What clients send to the control API, and the shapes of lists that it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from polyolo.control.external import HOME
from polyolo.errors import InvalidValueError
from polyolo.resources import (
    ApiKey,
    GoldenPicture,
    Identity,
    Invitation,
    Model,
    OAuthClient,
    Release,
    Tenant,
    Upload,
    Usage,
    User,
)
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

    state: TenantState | None = None
    plan: str | None = None


class NewOAuthClient(_Body):
    """An OAuth client to be made."""

    name: str = Field("", max_length=100)
    scopes: list[str] | None = Field(None, description="Default: all that the caller has.")


class NewKey(NewOAuthClient):
    """An API key to be made."""

    expires_in: int | str | None = Field(
        None, description="Seconds, or 90d, 12h, 30m. Default: never.", examples=["90d"]
    )
    sources: list[str] = Field(
        [], description="Networks it may be used from. Default: all.", examples=[["10.0.0.0/8"]]
    )


class Rotation(_Body):
    """How an API key, or an OAuth client's secret, is replaced."""

    overlap: int | str | None = Field(
        None, description="How long the old one goes on working. Default: not.", examples=["1h"]
    )


Email = Annotated[str, Field(max_length=320, examples=["ann@example.com"])]
Password = Annotated[
    str, Field(max_length=1000, description="10 to 200 characters.", json_schema_extra=_SECRET)
]


class SignIn(_Body):
    """Somebody's e-mail address and password."""

    email: Email
    password: Password


class Registration(SignIn):
    """A new customer."""

    organization: str = Field(max_length=200, examples=["Acme Inc."])
    invitation: str | None = Field(
        None, max_length=200, description="Its token, where the operator asks for one."
    )


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


class Acceptance(SignIn):
    """An invitation's token, and the account to be made with it."""

    token: str = Field(max_length=200)


NextPath = Annotated[
    str, Field(max_length=300, description="Path of this platform to go to afterwards.")
]


class NewSignIn(_Body):
    """What shall come of a sign-in through the external provider."""

    next: NextPath = HOME
    organization: str = Field(
        "", max_length=200, description="To register: whose tenant to make.", examples=["Acme Inc."]
    )
    invitation: str = Field("", max_length=200, description="Token of an invitation to use up.")


class NewIdentity(_Body):
    """One more way to sign in, to be added."""

    next: NextPath = HOME
    password: str = Field(
        "", max_length=1000, description="Of the account, if it has one.", json_schema_extra=_SECRET
    )


class Use(_Body):
    """The version to put in use."""

    version: Annotated[int, Field(ge=1)]
    force: bool = Field(False, description="Even if it is below the model's tolerance.")


class Rule(_Body):
    """When a rollout ends by itself: promoted if it is as good as this, else aborted."""

    after: int = Field(description="Requests that it is given before it is judged.")
    errors: float = Field(0.01, json_schema_extra={"minimum": 0, "maximum": 1})
    agreement: float | None = Field(
        None,
        description="Least agreement with the version in use; of shadows.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )


class RolloutBegin(_Body):
    """A version to be put on trial."""

    version: Annotated[int, Field(ge=1)]
    share: float = Field(
        description="Of the requests that name no version.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )
    shadow: bool = Field(False, description="It sees a copy, and answers nobody.")
    rule: Rule | None = None


class Promotion(_Body):
    """How a version on trial is put in use."""

    force: bool = Field(False, description="Even if it is below the model's tolerance.")


class Expected(_Body):
    """A box that is known to be in a picture."""

    class_name: str
    bbox: tuple[float, float, float, float]


class GoldenPut(_Body):
    """A golden picture, with what is known to be in it."""

    picture: str = Field(description="The encoded image, in base64.")
    expected: list[Expected] | None = Field(None, description="null: not known; []: nothing.")


class ReleasePin(_Body):
    """The release that a tenant's runtime is pinned to."""

    release: str | None = Field(
        None, description="A release's name, empty for the platform's own; null: not pinned."
    )


class ReleaseMove(_Body):
    """A release that a share of the tenants is moved to."""

    release: str = Field(description="Its name; empty for the platform's own.")
    share: float = Field(json_schema_extra={"minimum": 0, "maximum": 1})


class NewUpload(_Body):
    """A model file about to be sent."""

    model: str = Field(examples=["city"])
    size: Annotated[int, Field(ge=1, le=10**15, description="Bytes of the file.")]
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="Of the file; other bytes are refused."
    )
    classes: list[str] = Field([], max_length=10_000, description="Class names by id.")


class NewRegistration(_Body):
    """A model file that stays in the tenant's own storage."""

    uri: str = Field(max_length=500, examples=["city/v3.onnx"], description="Its path there.")
    sha256: str = Field(pattern="^[0-9a-fA-F]{64}$", description="Other bytes are refused.")
    size: int | None = Field(
        None, ge=1, le=10**15, description="Bytes; needed where only the runtime reads the file."
    )
    classes: list[str] = Field([], max_length=10_000, description="Class names by id.")


class SettingsChange(_Body):
    """Settings to change; a field left out stays, null puts it back to its default."""

    confidence: float | None = Field(None, json_schema_extra={"minimum": 0, "maximum": 1})
    iou: float | None = Field(None, json_schema_extra={"minimum": 0, "maximum": 1})
    classes: list[int | str] | None = Field(None, description="Ids or names; null: all.")
    max_detections: int | None = Field(None, json_schema_extra={"minimum": 1, "maximum": 1000})
    input_size: int | None = Field(
        None,
        description="Side of the input in pixels, in steps of 32; 0: the file's own.",
        json_schema_extra={"minimum": 0, "maximum": 4096},
    )
    engine: str | None = Field(
        None, description="onnxruntime, openvino, torch, auto; null: the file's usual one."
    )
    precision: str | None = Field(None, description="exact or fast.")
    tolerance: float | None = Field(
        None,
        description="Least agreement of a version that is put in use.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )


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
class IdentityList:
    """A user's identities at the external provider."""

    identities: list[Identity]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationList:
    """Invitations, without their tokens."""

    invitations: list[Invitation]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """A tenant's models, the standard one included."""

    models: list[Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenList:
    """A model's golden pictures."""

    golden: list[GoldenPicture]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseList:
    """The releases that there are."""

    releases: list[Release]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadList:
    """A tenant's uploads."""

    uploads: list[Upload]


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
