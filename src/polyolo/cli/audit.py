"""`polyolo audit`: who did what and called when; and whether that record is as it was written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal

from cyclopts import Parameter, validators
from rich.console import RenderableType

from polyolo import auditexport
from polyolo.cli.door import TENANT, AsTenant, as_tenant, key_of_operator
from polyolo.cli.output import complain, moment, say, show, show_json, table
from polyolo.client import Client
from polyolo.resources import AuditEntry, AuditVerdict

_PAGE = 1000  # entries fetched at a time

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def audit(
    *,
    verify: _Flag = False,
    export: Literal["jsonl", "csv"] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=_PAGE))] = 100,
    all_tenants: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    door: AsTenant = TENANT,
) -> int:
    """Show who did what and called when, the newest last.

    Args:
        verify: Check that no entry was edited, removed, moved or cut off; exit with 1 if one was.
        export: Print every entry as JSON Lines or CSV.
        since: First moment to show, as in 2026-01-31 or 2026-01-31T12:00:00.
        until: First moment not to show.
        limit: Show so many of the newest entries.
        all_tenants: Operator: the whole platform's.
    """
    if all_tenants:
        client, tenant = Client(door.url, key_of_operator(door)), None
    else:
        client, tenant = as_tenant(door)
    with client as polyolo:
        if verify:
            return _told(polyolo.verify_audit(tenant), json=door.json)
        start = since.timestamp() if since else None
        end = until.timestamp() if until else None
        if export:
            entries = _entries(polyolo, tenant, start, end)
            out = sys.stdout.buffer
            out.write(auditexport.header(export))
            for entry in entries:
                out.write(auditexport.line(entry, export))
            out.flush()
            return 0
        newest = polyolo.list_audit(since=start, until=end, limit=limit, newest=True, tenant=tenant)
    show(newest, lambda: _view(newest), json=door.json)
    return 0


def _entries(
    polyolo: Client, tenant: str | None, since: float | None, until: float | None
) -> Iterator[AuditEntry]:
    after = 0
    while True:
        page = polyolo.list_audit(since=since, until=until, after=after, limit=_PAGE, tenant=tenant)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def _told(verdict: AuditVerdict, *, json: bool) -> int:
    if json:
        show_json(verdict)
    elif not verdict.problems:
        say(f"{verdict.entries} entries are as they were written, and all there.")
        say(f"Signed by {verdict.public_key}")
    else:
        rows = ((problem.seq, problem.problem) for problem in verdict.problems)
        show(verdict, lambda: table(("entry#", "what is wrong"), rows), json=False)
    if verdict.problems:
        return complain("the audit log was tampered with; compare it with a backup or an export")
    return 0


def _view(entries: list[AuditEntry]) -> RenderableType:
    columns = ("entry#", "when", "who", "from", "action", "on", "outcome", "detail")
    rows = (
        (
            *(entry.seq, moment(entry.at), entry.actor, entry.source, entry.action),
            *(entry.resource, entry.status or "done", entry.detail),
        )
        for entry in entries
    )
    return table(columns, rows)
