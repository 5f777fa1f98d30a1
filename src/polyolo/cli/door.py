"""How a command reaches the service, and as whom: the options that commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from polyolo.client import DEFAULT_URL, Client
from polyolo.errors import UnauthenticatedError

_GROUP = Group("Connection and output", sort_key=9)  # last on a help page
_Url = Annotated[str, Parameter(env_var="POLYOLO_URL")]
_Ca = Annotated[Path | None, Parameter(env_var="POLYOLO_CA")]
_Key = Annotated[str | None, Parameter(env_var="POLYOLO_API_KEY")]
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class AsKey:
    """As whoever the API key belongs to."""

    url: _Url = DEFAULT_URL
    """The service."""
    ca: _Ca = None
    """Certificates to trust in place of the usual ones, PEM."""
    api_key: _Key = None
    """The tenant's API key."""
    json: _Flag = False
    """Print JSON."""


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class AsOperator:
    """As the operator of the platform."""

    url: _Url = DEFAULT_URL
    """The service."""
    ca: _Ca = None
    """Certificates to trust in place of the usual ones, PEM."""
    operator_key: str | None = None
    """The operator's key. [env var: POLYOLO_OPERATOR_KEY]"""
    home: Path | None = None
    """Home of `polyolo up`, for its operator.key. [default: ~/.local/share/polyolo]"""
    json: _Flag = False
    """Print JSON."""


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class AsTenant:
    """As a tenant by its API key, or as the operator who acts on one tenant."""

    url: _Url = DEFAULT_URL
    """The service."""
    ca: _Ca = None
    """Certificates to trust in place of the usual ones, PEM."""
    api_key: _Key = None
    """The tenant's API key."""
    tenant: str | None = None
    """Operator: the tenant to act on, by name or id."""
    operator_key: str | None = None
    """The operator's key, for --tenant. [env var: POLYOLO_OPERATOR_KEY]"""
    home: Path | None = None
    """Home of `polyolo up`, for --tenant. [default: ~/.local/share/polyolo]"""
    json: _Flag = False
    """Print JSON."""


# What a command gets when no option is given; frozen, so all commands may share them.
KEY, OPERATOR, TENANT = AsKey(), AsOperator(), AsTenant()


def default_home() -> Path:
    """Return where `polyolo up` keeps its data when told nothing: the user's data directory."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "polyolo"


def key_of_tenant(door: AsKey | AsTenant) -> str:
    """Return the API key; raise UnauthenticatedError, saying where it comes from."""
    if door.api_key is None or not door.api_key.strip():
        raise UnauthenticatedError(
            "no API key: set POLYOLO_API_KEY to the key that `polyolo tenants create` printed, "
            "or pass --api-key"
        )
    return door.api_key


def key_of_operator(door: AsOperator | AsTenant) -> str:
    """Return the operator's key; raise UnauthenticatedError, saying where it comes from.

    --operator-key, else the file in --home, else POLYOLO_OPERATOR_KEY, else the default home's.
    """
    given = door.operator_key or (
        os.environ.get("POLYOLO_OPERATOR_KEY") if door.home is None else None
    )
    if given:
        return given
    path = (door.home or default_home()) / "operator.key"
    try:
        found = path.read_text().strip()
    except OSError as error:
        found, why = "", error.strerror
    else:
        why = "it is empty"
    if not found:
        raise UnauthenticatedError(
            f"no operator's key: cannot read {path} ({why}); name the home of `polyolo up` with "
            "--home, or set POLYOLO_OPERATOR_KEY"
        )
    return found


def as_operator(door: AsOperator) -> Client:
    """Return the operator's client."""
    return Client(door.url, key_of_operator(door), ca=door.ca)


def as_tenant(door: AsTenant) -> tuple[Client, str]:
    """Return the client, and which tenant its calls are about."""
    if door.tenant is not None:
        return Client(door.url, key_of_operator(door), ca=door.ca), door.tenant
    return Client(door.url, key_of_tenant(door), ca=door.ca), "me"
