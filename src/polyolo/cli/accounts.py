"""`polyolo register`, `users`, `invitations`: the people of a platform."""

from __future__ import annotations

import os
import sys
from getpass import getpass
from typing import Annotated

from cyclopts import App, Parameter

from polyolo.cli.door import KEY, OPERATOR, AsKey, AsOperator, as_operator
from polyolo.cli.output import moment, say, show, show_json, table
from polyolo.client import Client
from polyolo.errors import InvalidValueError

_Tenant = Annotated[str | None, Parameter(show_default=False)]

users = App(name="users", help="A tenant's users. For the operator; owners use the console.")
invitations = App(name="invitations", help="Invite people. For the operator.")


def register(
    organization: str,
    /,
    *,
    email: str,
    invitation: str | None = None,
    door: AsKey = KEY,
) -> None:
    """Make an account, a tenant and its first API key, and print the key, this once.

    The password is asked for, or read from POLYOLO_PASSWORD; never given as an argument, where
    every user of the machine could read it.

    Args:
        organization: Whom the tenant is for; its name is derived from this.
        email: Your e-mail address.
        invitation: An invitation's token, where the operator asks for one.
    """
    password = _password()
    with Client(door.url, ca=door.ca) as polyolo:
        made = polyolo.register(email, password, organization, invitation=invitation)
    if door.json:
        show_json(made)
        return
    say(f"{made.user.email} owns the tenant {made.tenant.name} ({made.tenant.id}).")
    say("Its first API key, shown only now:\n")
    say(f"  export POLYOLO_API_KEY={made.api_key.key}\n")
    say("With it:  polyolo detect PICTURE")


@users.command(name="list")
def list_users(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """List a tenant's users.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        found = polyolo.list_users(tenant)
    rows = ((one.id, one.email, one.role, moment(one.created_at)) for one in found)
    show(found, lambda: table(("id", "e-mail", "role", "created"), rows), json=door.json)


@users.command
def role(tenant: str, user: str, role: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Give a user another role.

    Args:
        tenant: The tenant's name or id.
        user: The user's id.
        role: owner, developer, viewer or billing.
    """
    with as_operator(door) as polyolo:
        changed = polyolo.change_role(user, role, tenant=tenant)
    show(changed, lambda: f"{changed.email} is now {changed.role}.", json=door.json)


@users.command
def remove(tenant: str, user: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Remove a user; their sessions end at once, the keys that they made stay.

    Args:
        tenant: The tenant's name or id.
        user: The user's id.
    """
    with as_operator(door) as polyolo:
        polyolo.remove_user(user, tenant=tenant)
    show({"removed": user}, lambda: f"User {user} is removed.", json=door.json)


@invitations.command
def create(
    *,
    tenant: _Tenant = None,
    role: str | None = None,
    name: str | None = None,
    expires: str | None = None,
    door: AsOperator = OPERATOR,
) -> None:
    """Invite somebody and print the token, this once.

    Args:
        tenant: Into this tenant. [default: to register a tenant of their own]
        role: Their role in the tenant: owner, developer, viewer or billing.
        name: Whom it is for, for people to read.
        expires: Life time: 30d at most. [default: 7d]
    """
    with as_operator(door) as polyolo:
        made = polyolo.invite(role=role, name=name, expires_in=expires, tenant=tenant)
    if door.json:
        show_json(made)
        return
    say(f"Invitation {made.id}, good until {moment(made.expires_at)}. It is shown only now:\n")
    say(f"  {made.token}\n")
    say("Whoever has it can use it, once: hand it over in private.")


@invitations.command(name="list")
def list_invitations(*, tenant: _Tenant = None, door: AsOperator = OPERATOR) -> None:
    """List invitations, without their tokens.

    Args:
        tenant: Into this tenant. [default: to register]
    """
    with as_operator(door) as polyolo:
        found = polyolo.list_invitations(tenant)
    columns = ("id", "name", "role", "created", "expires", "used")
    rows = (
        (
            *(one.id, one.name, one.role),
            *(moment(one.created_at), moment(one.expires_at), moment(one.used_at)),
        )
        for one in found
    )
    show(found, lambda: table(columns, rows), json=door.json)


@invitations.command
def withdraw(invitation: str, /, *, tenant: _Tenant = None, door: AsOperator = OPERATOR) -> None:
    """Withdraw an invitation that was not used.

    Args:
        invitation: Its id.
        tenant: Into this tenant. [default: to register]
    """
    with as_operator(door) as polyolo:
        polyolo.withdraw_invitation(invitation, tenant=tenant)
    show({"withdrawn": invitation}, lambda: f"{invitation} is withdrawn.", json=door.json)


def _password() -> str:
    given = os.environ.get("POLYOLO_PASSWORD")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise InvalidValueError(
            "no password: set POLYOLO_PASSWORD, or run this in a terminal to be asked for it"
        )
    password = getpass("Password, 10 characters or more: ")
    if getpass("The same again: ") != password:
        raise InvalidValueError("the two passwords differ; nothing was made")
    return password
