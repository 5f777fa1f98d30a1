"""Who asks for what: the dependencies that every route of the control API begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from polyolo.control import access
from polyolo.control.plane import Plane
from polyolo.control.service import keys, tenants
from polyolo.errors import ForbiddenError
from polyolo.types import Principal

SCHEMES: list[Any] = [  # for the OpenAPI document; `access` does the work
    Security(HTTPBearer(auto_error=False, description="An API key, or the operator's key")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that may go on: who asks, on which tenant (by id; "" for the platform)."""

    who: Principal
    tenant: str
    plane: Plane


def _caller(request: Request) -> tuple[Plane, Principal, str]:
    plane: Plane = request.app.state.plane
    who, state = access.principal(
        access.presented(request.headers),
        operator_digest=plane.operator_digest,
        find_key=lambda identifier: keys.find(plane.ledger, identifier),
        now=plane.ledger.clock(),
    )
    request.scope["state"]["log"]["actor"] = f"{who.kind}:{who.id}"  # an id, never the key
    return plane, who, state


Caller = Annotated[tuple[Plane, Principal, str], Depends(_caller)]


def on_platform(action: str) -> Any:
    """Return the dependency of a route that is about the platform as a whole."""

    def check(caller: Caller) -> Asked:
        plane, who, state = caller
        _require(access.allowed(who, action, state=state))
        return Asked(who=who, tenant="", plane=plane)

    return Depends(check)


def on_tenant(action: str) -> Any:
    """Return the dependency of a route below `/tenants/{tenant}`.

    404 comes before 403: somebody else's tenant is not there, whatever is asked of it.
    """

    def check(caller: Caller, tenant: str) -> Asked:
        plane, who, state = caller
        identifier = tenants.resolve(plane.ledger, who, tenant)
        _require(access.allowed(who, action, identifier, state=state))
        return Asked(who=who, tenant=identifier, plane=plane)

    return Depends(check)


def _require(verdict: tuple[bool, str]) -> None:
    may, reason = verdict
    if not may:
        raise ForbiddenError(reason)
