"""Routes of sign-in through the external provider: the way there, the way back, one's identities.

The way back is the one request of another site that signs somebody in: it counts only with the
sealed cookie of the browser that began, once.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control import cookies, names
from polyolo.control.api.accounts import may_register
from polyolo.control.api.asking import SignedIn, Visitor, in_public, on_account
from polyolo.control.api.bodies import IdentityList, NewIdentity, NewSignIn
from polyolo.control.external import HOME, LONGEST_S, External, Pending
from polyolo.control.guesses import SOURCE
from polyolo.control.idempotency import OnceRoute
from polyolo.control.idtoken import IdentityClaims
from polyolo.control.plane import Plane
from polyolo.control.service import (
    identities,
    invitations,
    registration,
    replays,
    sessions,
    tries,
    users,
)
from polyolo.control.service.sessions import Live
from polyolo.control.service.tries import Key
from polyolo.control.throttle import network
from polyolo.errors import ForbiddenError, MalformedRequestError, NotFoundError, PolyoloError
from polyolo.resources import Redirect, SignInWays
from polyolo.web import json_response, problem_response

routes = APIRouter(prefix="/sign-in", tags=["accounts"], route_class=OnceRoute)
own = APIRouter(prefix="/sessions/current/identities", tags=["accounts"], route_class=OnceRoute)

_PRIVATE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1><p>{detail}.</p><p><a href="/api/v1/sign-in/oidc">Start again</a></p></html>
"""
_PAGE_POLICY = "default-src 'none'; frame-ancestors 'none'"

Brought = Annotated[str, Query(max_length=4000)]


@routes.get("", response_model=SignInWays)
def show_ways(visitor: Annotated[Visitor, in_public("sign-in")]) -> Response:
    """Show how people may sign in and register here."""
    settings = visitor.plane.settings
    provider = settings.provider.title if settings.provider else None
    return json_response(SignInWays(registration=settings.registration.value, provider=provider))


@routes.get("/oidc", status_code=303, response_class=Response)
async def start(
    request: Request,
    visitor: Annotated[Visitor, in_public("sign-in")],
    target: Annotated[str, Query(alias="next", max_length=300)] = HOME,
) -> Response:
    """Send the browser to the external provider, to sign in to an account that there is."""

    async def away() -> Response:
        external = _external(visitor.plane)
        url, cookie = await _begun(visitor.plane, external.begin(target))
        return Response(None, 303, {**_PRIVATE, "location": url, "set-cookie": cookie})

    return await _or_refusal(request, away())


@routes.post("/oidc", response_model=Redirect)
async def start_with_more(
    body: NewSignIn, visitor: Annotated[Visitor, in_public("sign-in")]
) -> Response:
    """Say where to send the browser, to sign in or, with more in the body, to get an account.

    With an organization the visitor registers (as in `/register`, without a first key), with
    the token of an invitation they join the tenant that it is for.
    """
    plane = visitor.plane
    external = _external(plane)
    if body.organization:
        may_register(plane, body.invitation)
        registration.tenant_name(body.organization)  # refused before the visitor is sent away
    if body.invitation:
        await run_in_threadpool(
            invitations.check, plane.ledger, body.invitation, to_register=bool(body.organization)
        )
    pending = external.begin(body.next, organization=body.organization, invitation=body.invitation)
    url, cookie = await _begun(plane, pending)
    return json_response(Redirect(url=url), headers={**_PRIVATE, "set-cookie": cookie})


@routes.get("/oidc/callback", status_code=303, response_class=Response)
async def finish(
    request: Request,
    visitor: Annotated[Visitor, in_public("sign-in", of_any_site=True)],
    state: Brought = "",
    code: Brought = "",
    iss: Brought | None = None,
    error: Brought = "",
) -> Response:
    """Take the browser back from the external provider, and sign its user in."""
    plane, ended = visitor.plane, False
    secure = plane.settings.secure_cookies

    async def signed_in() -> Response:
        nonlocal ended
        external = _external(plane)
        pending = external.unseal(cookies.sign_in_of(request.headers, secure=secure), state)
        ended = True
        # Each code that is brought costs the provider a request.
        brought = [Key(pace=SOURCE, what=("sign-in", network(visitor.source)))]
        await run_in_threadpool(tries.begin, plane.ledger, plane.vault, brought)
        claims = await _brought(plane, external, pending, request, code, iss, error)
        identities.checked(external.provider, claims)
        found = await run_in_threadpool(
            _settled, plane, external, pending, claims, request, network(visitor.source)
        )
        await run_in_threadpool(tries.forgive, plane.ledger, plane.vault, brought, [])
        answer = Response(None, 303, {**_PRIVATE, "location": pending.next})
        if found is not None:
            session, live = found
            request.scope["state"]["who"] = live.who  # for the audit log
            answer.headers.append("set-cookie", cookies.set_cookie(session, secure=secure))
        await plane.told()
        return answer

    answer = await _or_refusal(request, signed_in())
    if ended:
        answer.headers.append("set-cookie", cookies.set_sign_in("", 0, secure=secure))
    return answer


@own.get("", response_model=IdentityList)
def list_identities(mine: Annotated[SignedIn, on_account()]) -> Response:
    """List the identities at the external provider that sign the user in."""
    plane = mine.plane
    return json_response(
        IdentityList(identities=identities.every(plane.ledger, plane.vault, mine.live))
    )


@own.post("", response_model=Redirect)
async def add_identity(body: NewIdentity, mine: Annotated[SignedIn, on_account()]) -> Response:
    """Say where to send the browser, to add an identity to the account of who is signed in.

    The account's password must be sent if it has one.
    """
    plane, live = mine.plane, mine.live
    external = _external(plane)

    def confirm() -> None:
        user = users.get(plane.ledger, plane.vault, live.who.tenant or "", live.who.id)
        plane.guesses.begin(user.email, mine.source)
        sessions.confirm(plane.ledger, plane.passwords, live.who.id, body.password)
        plane.guesses.right(user.email, mine.source)

    await run_in_threadpool(confirm)
    url, cookie = await _begun(plane, external.begin(body.next, session=live.digest))
    return json_response(Redirect(url=url), headers={**_PRIVATE, "set-cookie": cookie})


@own.delete("/{identity}", status_code=204)
def remove_identity(identity: str, mine: Annotated[SignedIn, on_account()]) -> Response:
    """Take an identity away from the account of who is signed in."""
    identities.unlink(mine.plane.ledger, mine.live, identity)
    return Response(status_code=204)


def _external(plane: Plane) -> External:
    if plane.external is None:
        raise NotFoundError("this platform has no external sign-in provider; use a password")
    return plane.external


async def _begun(plane: Plane, pending: Pending) -> tuple[str, str]:
    """Return where to send the browser, and the cookie that it gets along."""
    external = _external(plane)
    url = await external.party.authentication_url(pending.request)
    secure = plane.settings.secure_cookies
    return url, cookies.set_sign_in(external.seal(pending), LONGEST_S, secure=secure)


async def _brought(
    plane: Plane,
    external: External,
    pending: Pending,
    request: Request,
    code: str,
    iss: str | None,
    error: str,
) -> IdentityClaims:
    """Return whom the provider vouches for, by the parameters that the browser brought back."""
    if len(request.query_params.multi_items()) != len(request.query_params):
        raise MalformedRequestError("a parameter is there more than once; start again")
    seen = names.digest(f"sign-in {pending.request.state}")
    if await run_in_threadpool(replays.claim, plane.ledger, seen) is not None:
        raise MalformedRequestError("this sign-in was finished already; start again")
    if error:
        raise ForbiddenError(
            f"you were not signed in at {external.provider.title}; start again, or sign in by "
            "password"
        )
    if not code:
        raise MalformedRequestError("the sign-in provider sent no code; start again")
    return await external.party.redeem(pending.request, code, iss)


def _settled(
    plane: Plane,
    external: External,
    pending: Pending,
    claims: IdentityClaims,
    request: Request,
    source: str,
) -> tuple[str, Live] | None:
    """Do what the sign-in was begun for; return the new session, None where the old one stays."""
    ledger, vault = plane.ledger, plane.vault
    before = cookies.session_of(request.headers, secure=plane.settings.secure_cookies)
    if pending.session:
        live = sessions.find(ledger, before)
        if live.digest != pending.session:
            raise ForbiddenError("somebody else signed in meanwhile; start again")
        identities.link(ledger, vault, claims, live)
        return None
    if pending.organization:
        may_register(plane, pending.invitation)
        plane.registrations.begin(source)
        return identities.register(
            ledger,
            vault,
            plane.settings.plans,
            claims,
            organization=pending.organization,
            invitation=pending.invitation,
            instead_of=before,
        )
    if pending.invitation:
        plane.registrations.begin(source)
        return identities.accept(
            ledger, vault, claims, invitation=pending.invitation, instead_of=before
        )
    return identities.sign_in(ledger, vault, external.provider, claims, instead_of=before)


async def _or_refusal(request: Request, answering: Awaitable[Response]) -> Response:
    """Return the answer, or why there is none: as a page where a browser asks."""
    try:
        return await answering
    except PolyoloError as error:
        request.scope["state"]["why"] = error.detail  # for the audit log
        if "text/html" not in request.headers.get("accept", ""):
            return problem_response(error, request.url.path)
        title, detail = html.escape(error.title), html.escape(error.detail.rstrip("."))
        headers = {**_PRIVATE, **error.headers(), "content-security-policy": _PAGE_POLICY}
        page = _PAGE.format(title=title, detail=detail)
        return Response(page, error.status, headers, media_type="text/html")
