"""`polyolo usage`: what was used, by whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType

from polyolo.cli.door import TENANT, AsTenant, as_tenant, key_of_operator
from polyolo.cli.output import moment, show, size, table
from polyolo.client import Client
from polyolo.resources import Usage


def usage(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    all_tenants: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    door: AsTenant = TENANT,
) -> None:
    """Show what a tenant has used.

    Args:
        since: First moment that counts, as in 2026-01-31 or 2026-01-31T12:00:00.
        until: First moment that no longer counts. [default: now]
        all_tenants: Operator: every tenant's usage.
    """
    start = since.timestamp() if since else None
    end = until.timestamp() if until else None
    if all_tenants:
        with Client(door.url, key_of_operator(door)) as polyolo:
            used = polyolo.list_usage(since=start, until=end)
        show(used, lambda: _view(used), json=door.json)
        return
    client, tenant = as_tenant(door)
    with client as polyolo:
        mine = polyolo.usage(since=start, until=end, tenant=tenant)
    show(mine, lambda: _view([mine]), json=door.json)


def usage_table(used: Sequence[Usage]) -> RenderableType:
    """Return a table with a row a tenant and model."""
    columns = ("tenant", "model", "requests#", "images#", "errors#", "engine s#", "received#")
    rows: list[tuple[object, ...]] = []
    for use in used:
        seconds, received = f"{use.engine_ms / 1e3:.2f}", size(use.bytes_in)
        rows.append((use.name, "", use.requests, use.images, use.errors, seconds, received))
        rows += (
            ("", model.model, model.requests, model.images, "", f"{model.engine_ms / 1e3:.2f}", "")
            for model in use.models
        )
    return table(columns, rows)


def _view(used: Sequence[Usage]) -> RenderableType:
    if not used:
        return "No tenant yet."
    return Group(f"{moment(used[0].since)} to {moment(used[0].until)}", usage_table(used))
