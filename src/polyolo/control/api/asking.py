"""Who asks for what: the dependencies that every route of the control API begins with.

Each names the route's action; a route without one fails a test (and is nobody's to call).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer

from polyolo.control import access, cookies
from polyolo.control.plane import Plane
from polyolo.control.service import keys, oauth, sessions, tenants
from polyolo.control.service.sessions import Live
from polyolo.errors import ForbiddenError
from polyolo.types import Principal

SCHEMES: list[Any] = [  # for the OpenAPI document; `access` does the work
    Security(HTTPBearer(auto_error=False, description="An API key, or the operator's key")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
    Security(APIKeyCookie(name="polyolo_session", auto_error=False, description="A session")),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody whose credential is good. state: of their tenant, "" for the operator."""

    plane: Plane
    who: Principal
    state: str
    secret: str
    """What they presented; never kept."""
    live: Live | None = None
    """Their session, if that is how they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that may go on: who asks, on which tenant (by id; "" for the platform)."""

    who: Principal
    tenant: str
    plane: Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A request that needs no credential. source: the address that it came from, "" if unknown."""

    plane: Plane
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """A request of somebody about their own account. session: the id that the cookie holds."""

    plane: Plane
    live: Live
    session: str
    source: str


def authenticate(request: Request) -> Caller:
    """Return who asks: by key or token in a header, else by the session in a cookie.

    Raises UnauthenticatedError, and ForbiddenError when another site's page uses the cookie.
    """
    plane: Plane = request.app.state.plane
    session = cookies.session_of(request.headers, secure=plane.settings.secure_cookies)
    in_header = "authorization" in request.headers or "x-api-key" in request.headers
    if session and not in_header:
        live = sessions.find(plane.ledger, session)
        cookies.check_page(request.method, request.headers, session)
        found = Caller(
            plane=plane, who=live.who, state=live.tenant_state, secret=session, live=live
        )
    else:
        secret = access.presented(request.headers)
        who, state = access.principal(
            secret,
            operator_digest=plane.operator_digest,
            find_key=lambda identifier: keys.find(plane.ledger, identifier),
            now=plane.ledger.clock(),
            judge_token=lambda token: oauth.principal(plane.ledger, plane.token_signer, token),
            source=source_of(request),
        )
        found = Caller(plane=plane, who=who, state=state, secret=secret)
    # An id, never the key.
    request.scope["state"]["log"]["actor"] = f"{found.who.kind}:{found.who.id}"
    request.scope["state"]["who"] = found.who  # for the audit log
    return found


Known = Annotated[Caller, Depends(authenticate)]


def source_of(request: Request) -> str:
    """Return the address that a request came from, as the gateway saw it; "" if unknown.

    The gateway writes this header and drops whatever a client calls so; nobody else reaches the
    control plane's socket.
    """
    return request.headers.get("polyolo-client-address", "")


def about(state: Mapping[str, Any]) -> str | None:
    """Return the id of the tenant that a request was about; None for the platform's own.

    state: the request's. A route that makes a tenant, or finds out only then whose the request
    is, puts it there as `tenant`.
    """
    who: Principal | None = state.get("who")
    return state.get("tenant") or (None if who is None else who.tenant)


def on_platform(action: str) -> Any:
    """Return the dependency of a route that is about the platform as a whole."""

    def check(caller: Known) -> Asked:
        _require(access.allowed(caller.who, action, state=caller.state))
        return Asked(who=caller.who, tenant="", plane=caller.plane)

    return _declaring(action, check)


def on_tenant(action: str, *, gone: bool = False) -> Any:
    """Return the dependency of a route below `/tenants/{tenant}`.

    404 comes before 403: somebody else's tenant is not there, whatever is asked of it. gone: the
    operator may mean a tenant that was deleted (see tenants.resolve).
    """

    def check(caller: Known, tenant: str, request: Request) -> Asked:
        identifier = tenants.resolve(caller.plane.ledger, caller.who, tenant, gone=gone)
        request.scope["state"]["tenant"] = identifier  # for the audit log
        _require(access.allowed(caller.who, action, identifier, state=caller.state))
        return Asked(who=caller.who, tenant=identifier, plane=caller.plane)

    return _declaring(action, check)


def on_account() -> Any:
    """Return the dependency of a route about the account of who is signed in.

    A suspended tenant's user may still sign out.
    """

    def check(caller: Known, request: Request) -> SignedIn:
        _require(access.allowed(caller.who, "account:own", caller.who.tenant))
        if caller.live is None:
            raise ForbiddenError("sign in for this")
        return SignedIn(
            plane=caller.plane,
            live=caller.live,
            session=caller.secret,
            source=source_of(request),
        )

    return _declaring("account:own", check)


def in_public(action: str, *, of_any_site: bool = False) -> Any:
    """Return the dependency of a route that needs no credential.

    of_any_site: a page of another site may ask, since the route itself knows what it began.
    """

    def check(request: Request) -> Visitor:
        _require(access.allowed(None, action))
        if not of_any_site:
            cookies.check_site(request.headers)
        return Visitor(plane=request.app.state.plane, source=source_of(request))

    return _declaring(action, check)


def declared(route: Any) -> str | None:
    """Return the action that a route declares; None when it has none."""
    asked = getattr(getattr(route, "dependant", None), "dependencies", ())
    found = (getattr(dependency.call, "action", None) for dependency in asked)
    return next((action for action in found if action), None) or getattr(
        getattr(route, "endpoint", None), "action", None
    )


def _declaring(action: str, check: Callable[..., Any]) -> Any:
    check.__dict__["action"] = action
    return Depends(check)


def _require(verdict: tuple[bool, str]) -> None:
    may, reason = verdict
    if not may:
        raise ForbiddenError(reason)
