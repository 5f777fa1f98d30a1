"""`polyolo keys`: a tenant's API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from polyolo.cli.door import TENANT, AsTenant, as_tenant, default_home
from polyolo.cli.output import moment, say, show, show_json, table
from polyolo.errors import InvalidValueError
from polyolo.resources import ApiKey

app = App(name="keys", help="A tenant's API keys.")


@app.command
def create(
    *,
    name: str | None = None,
    scope: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    expires: str | None = None,
    source: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    door: AsTenant = TENANT,
) -> None:
    """Create an API key and print it, this once.

    Args:
        name: What it is for, for people to read.
        scope: One right (detect, models:read, models:write, usage:read, keys:write,
            settings:write); repeat for more. [default: all]
        expires: Life time: 90d, 12h, or seconds. [default: for ever]
        source: One network (203.0.113.0/24) or address that it may be used from; repeat for
            more. [default: anywhere]
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        key = polyolo.create_key(
            name=name, scopes=scope, expires_in=expires, sources=source, tenant=tenant
        )
    _show_new(key, json=door.json)


@app.command(name="list")
def list_(*, door: AsTenant = TENANT) -> None:
    """List the API keys, without what makes them usable."""
    client, tenant = as_tenant(door)
    with client as polyolo:
        keys = polyolo.list_keys(tenant)
    columns = ("id", "name", "scopes", "from", "created", "last used", "expires", "revoked")
    rows = (
        (
            *(key.id, key.name, " ".join(key.scopes), " ".join(key.sources)),
            *(moment(key.created_at), moment(key.last_used_at)),
            *(moment(key.expires_at), moment(key.revoked_at)),
        )
        for key in keys
    )
    show(keys, lambda: table(columns, rows), json=door.json)


@app.command
def rotate(key_id: str, /, *, overlap: str | None = None, door: AsTenant = TENANT) -> None:
    """Replace a key by a new one with the same rights, and print that, this once.

    Args:
        key_id: The old key's id, as `polyolo keys list` shows it.
        overlap: How long the old key goes on working: 1h, 30m, or seconds. [default: not]
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        key = polyolo.rotate_key(key_id, overlap=overlap, tenant=tenant)
    _show_new(key, json=door.json)


@app.command
def revoke(key_id: str, /, *, door: AsTenant = TENANT) -> None:
    """Revoke a key: whoever still uses it is answered 401.

    Args:
        key_id: The key's id, as `polyolo keys list` shows it.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        polyolo.revoke_key(key_id, tenant=tenant)
    show({"revoked": key_id}, lambda: f"Key {key_id} is revoked.", json=door.json)


@app.command
def rotate_master(
    *,
    home: Path | None = None,
    database: Annotated[str, Parameter(env_var="POLYOLO_DATABASE")] = "",
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Put a new master key in force, which seals what is secret in the database. For the operator.

    The platform must not run. Keep the old key as long as backups that it opens.

    Args:
        home: Home of `polyolo up`; holds the key in `master.key`.
            [default: ~/.local/share/polyolo]
        database: SQLAlchemy URL. [default: SQLite in the home]
        json: Print JSON.
    """
    from polyolo.control.rotation import rotate_master as rotated

    where = (home or default_home()).absolute()
    if not where.is_dir():
        raise InvalidValueError(f"{where} is no home of a platform; name it with --home")
    count = rotated(where, database or f"sqlite:///{where / 'polyolo.db'}")
    show(
        {"rewrapped": count},
        lambda: f"A new master key is in {where / 'master.key'}; it wraps {count} data keys.",
        json=json,
    )


def _show_new(key: ApiKey, *, json: bool) -> None:
    if json:
        show_json(key)
        return
    until = f", good until {moment(key.expires_at)}" if key.expires_at else ""
    say(f"Key {key.id}{until}. It is shown only now:\n")
    say(f"  export POLYOLO_API_KEY={key.key}")
