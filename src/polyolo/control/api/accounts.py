"""Routes of people: registration, signing in and out, users, invitations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control import cookies, emails, passwords
from polyolo.control.api.asking import (
    Asked,
    SignedIn,
    Visitor,
    in_public,
    on_account,
    on_platform,
    on_tenant,
)
from polyolo.control.api.bodies import (
    Acceptance,
    InvitationList,
    NewInvitation,
    NewRegistrationInvitation,
    PasswordChange,
    Registration,
    RoleChange,
    SignIn,
    UserList,
    duration,
)
from polyolo.control.idempotency import OnceRoute
from polyolo.control.plane import Plane
from polyolo.control.service import invitations, registration, sessions, users
from polyolo.control.service.sessions import Live
from polyolo.control.settings import Registration as Rule
from polyolo.control.throttle import network
from polyolo.errors import ForbiddenError
from polyolo.resources import Invitation, Registered, Session, User
from polyolo.web import json_response

routes = APIRouter(route_class=OnceRoute)

_TO_REGISTER = "owner"  # the role of who registers


# --- Registration -----------------------------------------------------------------------------


@routes.post("/register", status_code=201, response_model=Registered, tags=["accounts"])
async def register(
    request: Request, body: Registration, visitor: Annotated[Visitor, in_public("register")]
) -> Response:
    """Make an account, its tenant and the tenant's first API key, which is shown only here.

    The tenant's name is derived from the organization. When the operator asks for invitations, the
    body holds the token of one; when registration is closed, the answer is 403. The words of a
    409 do not say whether the address has an account, and tries are slowed down.
    """
    plane = visitor.plane
    may_register(plane, body.invitation)
    plane.registrations.begin(network(visitor.source))
    email = emails.normal(body.email)

    def work() -> Registered:
        passwords.checked(body.password, email=email)
        registration.tenant_name(body.organization)  # refused before the costly step
        if body.invitation is not None:
            invitations.check(plane.ledger, body.invitation, to_register=True)
        return registration.register(
            plane.ledger,
            plane.vault,
            plane.settings.plans,
            email=email,
            password=plane.passwords.hash(body.password),
            organization=body.organization,
            invitation=body.invitation,
        )

    made = await run_in_threadpool(work)
    request.scope["state"]["tenant"] = made.tenant.id  # for the audit log
    await plane.told()
    return json_response(made, 201, _NO_STORE)


def may_register(plane: Plane, invitation: str | None) -> None:
    """Raise ForbiddenError where the operator lets nobody register, or not without invitation."""
    rule = plane.settings.registration
    if rule is Rule.CLOSED:
        raise ForbiddenError("registration is closed here; ask the platform's operator")
    if rule is Rule.INVITE and not invitation:
        raise ForbiddenError("registration needs an invitation of the platform's operator")


@routes.post("/invitations", status_code=201, response_model=Invitation, tags=["accounts"])
def invite_to_register(
    body: NewRegistrationInvitation,
    asked: Annotated[Asked, on_platform("registrations:invite")],
) -> Response:
    """Invite somebody to register. The answer holds the token, and is the only one that does."""
    made = invitations.create(
        asked.plane.ledger,
        asked.who,
        None,
        role=_TO_REGISTER,
        name=body.name,
        expires_in=duration(body.expires_in),
    )
    return json_response(made, 201, _NO_STORE)


@routes.get("/invitations", response_model=InvitationList, tags=["accounts"])
def list_invitations_to_register(
    asked: Annotated[Asked, on_platform("registrations:invite")],
) -> Response:
    """List the invitations to register."""
    return json_response(InvitationList(invitations=invitations.every(asked.plane.ledger, None)))


@routes.delete("/invitations/{invitation}", status_code=204, tags=["accounts"])
def withdraw_invitation_to_register(
    invitation: str, asked: Annotated[Asked, on_platform("registrations:invite")]
) -> Response:
    """Withdraw an invitation to register that was not used."""
    invitations.withdraw(asked.plane.ledger, asked.who, None, invitation)
    return Response(status_code=204)


@routes.post("/invitations/accept", status_code=201, response_model=User, tags=["accounts"])
def accept_invitation(
    request: Request, body: Acceptance, visitor: Annotated[Visitor, in_public("invitations:accept")]
) -> Response:
    """Become a user of the tenant that one was invited to."""
    plane = visitor.plane
    plane.registrations.begin(network(visitor.source))
    email = emails.normal(body.email)
    passwords.checked(body.password, email=email)
    tenant = invitations.check(plane.ledger, body.token, to_register=False)
    request.scope["state"]["tenant"] = tenant  # for the audit log
    hashed = plane.passwords.hash(body.password)
    made = invitations.accept(plane.ledger, plane.vault, body.token, email=email, password=hashed)
    return json_response(made, 201)


# --- Signing in and out -----------------------------------------------------------------------


@routes.post("/sessions", status_code=201, response_model=Session, tags=["accounts"])
def sign_in(
    request: Request, body: SignIn, visitor: Annotated[Visitor, in_public("sign-in")]
) -> Response:
    """Sign in: the answer sets the session's cookie, and tells the CSRF token.

    Requests that change something send that token as X-CSRF-Token. A session ends after an hour
    without a request, and after twelve hours in any case. After a few wrong passwords the answer
    is 429, with the seconds to wait.
    """
    plane, email = visitor.plane, emails.normal(body.email)
    secure = plane.settings.secure_cookies
    plane.guesses.begin(email, visitor.source)
    session, live = sessions.sign_in(
        plane.ledger,
        plane.vault,
        plane.passwords,
        email=email,
        password=body.password,
        instead_of=cookies.session_of(request.headers, secure=secure),
    )
    plane.guesses.right(email, visitor.source)
    request.scope["state"]["tenant"] = live.who.tenant  # for the audit log
    answer = json_response(_session(plane, live, session), 201, _NO_STORE)
    answer.headers["set-cookie"] = cookies.set_cookie(session, secure=secure)
    return answer


@routes.get("/sessions/current", response_model=Session, tags=["accounts"])
def show_session(own: Annotated[SignedIn, on_account()]) -> Response:
    """Show who is signed in."""
    return json_response(_session(own.plane, own.live, own.session), headers=_NO_STORE)


@routes.delete("/sessions/current", status_code=204, tags=["accounts"])
def sign_out(own: Annotated[SignedIn, on_account()]) -> Response:
    """Sign out: the session ends here, not only in the browser."""
    sessions.end(own.plane.ledger, own.live)
    drop = cookies.drop_cookie(secure=own.plane.settings.secure_cookies)
    return Response(status_code=204, headers={"set-cookie": drop})


@routes.put("/sessions/current/password", status_code=204, tags=["accounts"])
def change_password(body: PasswordChange, own: Annotated[SignedIn, on_account()]) -> Response:
    """Change the password of who is signed in; their other sessions end."""
    plane, live = own.plane, own.live
    user = users.get(plane.ledger, plane.vault, live.who.tenant or "", live.who.id)
    passwords.checked(body.new, email=user.email)
    plane.guesses.begin(user.email, own.source)
    sessions.change_password(plane.ledger, plane.passwords, live, old=body.old, new=body.new)
    plane.guesses.right(user.email, own.source)
    return Response(status_code=204)


# --- People of a tenant -----------------------------------------------------------------------


@routes.get("/tenants/{tenant}/users", response_model=UserList, tags=["accounts"])
def list_users(asked: Annotated[Asked, on_tenant("users:read")]) -> Response:
    """List the tenant's users."""
    plane = asked.plane
    return json_response(UserList(users=users.every(plane.ledger, plane.vault, asked.tenant)))


@routes.patch("/tenants/{tenant}/users/{user}", response_model=User, tags=["accounts"])
def change_role(
    user: str, body: RoleChange, asked: Annotated[Asked, on_tenant("users:write")]
) -> Response:
    """Give a user another role, in force with their next request."""
    plane = asked.plane
    changed = users.set_role(plane.ledger, plane.vault, asked.who, asked.tenant, user, body.role)
    return json_response(changed)


@routes.delete("/tenants/{tenant}/users/{user}", status_code=204, tags=["accounts"])
def remove_user(user: str, asked: Annotated[Asked, on_tenant("users:write")]) -> Response:
    """Remove a user; their sessions end at once, the API keys that they made stay."""
    users.remove(asked.plane.ledger, asked.who, asked.tenant, user)
    return Response(status_code=204)


@routes.post(
    "/tenants/{tenant}/invitations",
    status_code=201,
    response_model=Invitation,
    tags=["accounts"],
)
def invite(body: NewInvitation, asked: Annotated[Asked, on_tenant("users:write")]) -> Response:
    """Invite somebody into the tenant. The answer holds the token, and is the only one that does.

    Whoever has the token can use it, once: hand it over in private.
    """
    made = invitations.create(
        asked.plane.ledger,
        asked.who,
        asked.tenant,
        role=body.role,
        name=body.name,
        expires_in=duration(body.expires_in),
    )
    return json_response(made, 201, _NO_STORE)


@routes.get("/tenants/{tenant}/invitations", response_model=InvitationList, tags=["accounts"])
def list_invitations(asked: Annotated[Asked, on_tenant("users:read")]) -> Response:
    """List the tenant's invitations, without their tokens."""
    found = invitations.every(asked.plane.ledger, asked.tenant)
    return json_response(InvitationList(invitations=found))


@routes.delete("/tenants/{tenant}/invitations/{invitation}", status_code=204, tags=["accounts"])
def withdraw_invitation(
    invitation: str, asked: Annotated[Asked, on_tenant("users:write")]
) -> Response:
    """Withdraw an invitation that was not used."""
    invitations.withdraw(asked.plane.ledger, asked.who, asked.tenant, invitation)
    return Response(status_code=204)


_NO_STORE = {"cache-control": "no-store"}  # of answers that hold a secret


def _session(plane: Plane, live: Live, session: str) -> Session:
    tenant = live.who.tenant or ""
    return Session(
        user=users.get(plane.ledger, plane.vault, tenant, live.who.id),
        tenant=tenant,
        scopes=live.who.scopes,
        csrf_token=cookies.csrf_token(session),
        expires_at=live.expires_at,
    )
