"""Operations on accounts: registration, a tenant's users, invitations."""

from __future__ import annotations

from polyolo.client.call import Call
from polyolo.client.compose import delete, each, get, one, patch, post, quoted, tenant_path
from polyolo.resources import Invitation, Registered, User


def register(
    email: str, password: str, organization: str, *, invitation: str | None = None
) -> Call[Registered]:
    """Make an account, its tenant and a first API key; the key is in the answer, this once.

    invitation: its token, where the operator asks for one.
    """
    fields = {"email": email, "password": password, "organization": organization}
    return post("/api/v1/register", fields | {"invitation": invitation}, one(Registered))


def accept_invitation(token: str, email: str, password: str) -> Call[User]:
    """Become a user of the tenant that the invitation is for."""
    fields = {"token": token, "email": email, "password": password}
    return post("/api/v1/invitations/accept", fields, one(User))


def list_users(tenant: str = "me") -> Call[list[User]]:
    """Return a tenant's users. For the operator; owners do it in the console."""
    return get(f"{tenant_path(tenant)}/users", each(User, "users"))


def change_role(user: str, role: str, *, tenant: str = "me") -> Call[User]:
    """Give a user another role: owner, developer, viewer or billing."""
    return patch(f"{tenant_path(tenant)}/users/{quoted(user)}", {"role": role}, one(User))


def remove_user(user: str, *, tenant: str = "me") -> Call[None]:
    """Remove a user; their sessions end at once, the keys that they made stay."""
    return delete(f"{tenant_path(tenant)}/users/{quoted(user)}")


def invite(
    *,
    role: str | None = None,
    name: str | None = None,
    expires_in: str | int | None = None,
    tenant: str | None = "me",
) -> Call[Invitation]:
    """Invite somebody; the invitation's token is in the answer, this once.

    role: in the tenant. tenant: None to invite to register, as the operator, with no role.
    expires_in: `7d`, `12h` or seconds; None: 7 days.
    """
    fields = {"role": role, "name": name, "expires_in": expires_in}
    return post(_invitations(tenant), fields, one(Invitation))


def list_invitations(tenant: str | None = "me") -> Call[list[Invitation]]:
    """Return a tenant's invitations, without their tokens; None: those to register."""
    return get(_invitations(tenant), each(Invitation, "invitations"))


def withdraw_invitation(invitation: str, *, tenant: str | None = "me") -> Call[None]:
    """Withdraw an invitation that was not used."""
    return delete(f"{_invitations(tenant)}/{quoted(invitation)}")


def _invitations(tenant: str | None) -> str:
    return "/api/v1/invitations" if tenant is None else f"{tenant_path(tenant)}/invitations"
