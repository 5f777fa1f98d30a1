"""`polyolo oauth`: programs of a tenant that use short-lived tokens instead of an API key."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from polyolo.cli.door import (
    KEY,
    OPERATOR,
    TENANT,
    AsKey,
    AsOperator,
    AsTenant,
    as_operator,
    as_tenant,
)
from polyolo.cli.output import moment, say, show, show_json, table
from polyolo.client import Client
from polyolo.resources import OAuthClient

app = App(name="oauth", help="A tenant's OAuth clients and their access tokens.")

_Scopes = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]


@app.command
def create(*, name: str | None = None, scope: _Scopes = (), door: AsTenant = TENANT) -> None:
    """Create an OAuth client and print its secret, this once.

    Args:
        name: What it is for, for people to read.
        scope: One right that its tokens may have; repeat for more. [default: all of yours]
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        made = polyolo.create_oauth_client(name=name, scopes=scope, tenant=tenant)
    _show_new(made, json=door.json)


@app.command(name="list")
def list_(*, door: AsTenant = TENANT) -> None:
    """List the OAuth clients, without their secrets."""
    client, tenant = as_tenant(door)
    with client as polyolo:
        clients = polyolo.list_oauth_clients(tenant)
    columns = ("id", "name", "scopes", "created", "last used", "revoked")
    rows = (
        (
            *(one.id, one.name, " ".join(one.scopes)),
            *(moment(one.created_at), moment(one.last_used_at), moment(one.revoked_at)),
        )
        for one in clients
    )
    show(clients, lambda: table(columns, rows), json=door.json)


@app.command
def rotate(client_id: str, /, *, overlap: str | None = None, door: AsTenant = TENANT) -> None:
    """Give a client a new secret and print it, this once; the tokens that it has stay good.

    Args:
        client_id: The client's id, as `polyolo oauth list` shows it.
        overlap: How long the old secret goes on working: 1h, 30m, or seconds. [default: not]
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        made = polyolo.rotate_oauth_client(client_id, overlap=overlap, tenant=tenant)
    _show_new(made, json=door.json)


@app.command
def revoke(client_id: str, /, *, door: AsTenant = TENANT) -> None:
    """Revoke a client: it gets no more tokens, and those that it has stop working.

    Args:
        client_id: The client's id, as `polyolo oauth list` shows it.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        polyolo.revoke_oauth_client(client_id, tenant=tenant)
    show({"revoked": client_id}, lambda: f"Client {client_id} is revoked.", json=door.json)


@app.command
def token(
    *,
    client_id: Annotated[str, Parameter(env_var="POLYOLO_CLIENT_ID")],
    client_secret: Annotated[str, Parameter(env_var="POLYOLO_CLIENT_SECRET")],
    scope: _Scopes = (),
    door: AsKey = KEY,
) -> None:
    """Get an access token and print it, to be used in place of an API key.

    Args:
        client_id: The client's id.
        client_secret: The client's secret; in the environment no other user can read it.
        scope: One right that it should have; repeat for more. [default: all of the client's]
    """
    with Client(door.url, ca=door.ca) as polyolo:
        made = polyolo.access_token(client_id, client_secret, scopes=scope)
    show(made, lambda: made.access_token, json=door.json)


@app.command
def rotate_signing_key(*, door: AsOperator = OPERATOR) -> None:
    """Sign tokens with a new key at once, as after a leak: all there are stop working.

    For the operator. By itself the platform changes its key every month, and no token suffers.
    """
    with as_operator(door) as polyolo:
        polyolo.rotate_signing_keys()
    show({"rotated": True}, lambda: "Tokens are signed with a new key.", json=door.json)


def _show_new(made: OAuthClient, *, json: bool) -> None:
    if json:
        show_json(made)
        return
    old = (
        f", the old one is good until {moment(made.previous_until)}" if made.previous_until else ""
    )
    say(f"Client {made.id}. Its secret is shown only now{old}:\n")
    say(f"  export POLYOLO_CLIENT_ID={made.client_id}")
    say(f"  export POLYOLO_CLIENT_SECRET={made.client_secret}\n")
    say("With them:  export POLYOLO_API_KEY=$(polyolo oauth token)")
