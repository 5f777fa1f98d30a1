"""Routes of the audit log: read, exported, verified, by its tenant and by the operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from polyolo import auditexport
from polyolo.control import witness
from polyolo.control.api.asking import Asked, on_platform, on_tenant
from polyolo.control.api.bodies import moment
from polyolo.control.service import audit
from polyolo.resources import AuditEntry, AuditVerdict
from polyolo.web import json_response

routes = APIRouter(tags=["audit"])

_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
_BLOCK_BYTES = 1 << 16
"""Bytes gathered before they are sent: an export has millions of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """Entries in order; more may come after the last one's `seq`."""

    entries: list[AuditEntry]


class Wanted(BaseModel):
    """Which entries, and how."""

    since: str | None = Field(None, description="Unix seconds, a date or an RFC 3339 time")
    until: str | None = Field(None, description="Unix seconds, a date or an RFC 3339 time")
    after: int = Field(0, ge=0, le=2**62, description="`seq` of the last entry seen")
    limit: int = Field(100, ge=1, le=1000, description="For JSON; an export has all")
    newest: bool = Field(False, description="The last ones, not the first ones after `after`")
    format: Literal["json", "jsonl", "csv"] = "json"


@routes.get("/tenants/{tenant}/audit", response_model=AuditPage)
def list_audit(
    wanted: Annotated[Wanted, Query()], asked: Annotated[Asked, on_tenant("audit:read")]
) -> Response:
    """List who did what in the tenant's name or to it, oldest first; or export it."""
    return _answer(asked, asked.tenant, wanted)


@routes.get("/tenants/{tenant}/audit/verify", response_model=AuditVerdict)
def verify_audit(asked: Annotated[Asked, on_tenant("audit:read")]) -> Response:
    """Check that the tenant's entries are as they were written, and all there."""
    return json_response(audit.verified(asked.plane.ledger, asked.tenant))


@routes.get("/audit", response_model=AuditPage)
def list_audit_of_all(
    wanted: Annotated[Wanted, Query()], asked: Annotated[Asked, on_platform("audit:read-all")]
) -> Response:
    """List who did what on the platform, oldest first; or export it."""
    return _answer(asked, None, wanted)


@routes.get("/audit/verify", response_model=AuditVerdict)
def verify_audit_of_all(asked: Annotated[Asked, on_platform("audit:read-all")]) -> Response:
    """Check that the whole log is as it was written, and all there."""
    plane = asked.plane
    return json_response(audit.verified(plane.ledger, witnessed=witness.read(plane.settings.home)))


def _answer(asked: Asked, tenant: str | None, wanted: Wanted) -> Response:
    ledger = asked.plane.ledger
    since = moment(wanted.since, "since", 0.0)
    until = moment(wanted.until, "until", float("inf"))
    limit = wanted.limit if wanted.format == "json" else None
    if wanted.newest and wanted.format == "json":
        last = audit.newest(ledger, tenant, since=since, until=until, limit=wanted.limit)
        return json_response(AuditPage(entries=last))
    found = audit.entries(ledger, tenant, since=since, until=until, after=wanted.after, limit=limit)
    if wanted.format == "json":
        return json_response(AuditPage(entries=list(found)))
    return StreamingResponse(_lines(found, wanted.format), media_type=_TYPES[wanted.format])


def _lines(entries: Iterator[AuditEntry], form: str) -> Iterator[bytes]:
    block = bytearray(auditexport.header(form))
    for entry in entries:
        block += auditexport.line(entry, form)
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)
