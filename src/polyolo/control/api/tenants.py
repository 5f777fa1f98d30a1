"""Routes of tenants, their runtimes, keys and usage."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_platform, on_tenant
from polyolo.control.api.bodies import (
    KeyList,
    NewKey,
    NewTenant,
    Rotation,
    TenantChange,
    TenantList,
    UsageList,
    duration,
    moment,
)
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import keys, limits, runtimes, tenants, usage
from polyolo.errors import InvalidValueError
from polyolo.months import start as month_start
from polyolo.resources import ApiKey, Tenant, Usage
from polyolo.types import RuntimeStatus
from polyolo.web import json_response

routes = APIRouter(route_class=OnceRoute)

When = Annotated[
    str | None,
    Query(description="Unix seconds, a date or an RFC 3339 time", examples=["2026-01-31"]),
]


@routes.post("/tenants", status_code=201, response_model=Tenant, tags=["tenants"])
async def create_tenant(
    request: Request, body: NewTenant, asked: Annotated[Asked, on_platform("tenants:create")]
) -> Response:
    """Make a tenant. The answer holds its first API key, which is shown only here."""
    plane = asked.plane
    made = await run_in_threadpool(
        tenants.create, plane.ledger, asked.who, body.name, body.plan, plane.settings.plans
    )
    request.scope["state"]["tenant"] = made.id  # for the audit log
    await plane.told()
    return json_response(made, 201)


@routes.get("/tenants", response_model=TenantList, tags=["tenants"])
def list_tenants(asked: Annotated[Asked, on_platform("tenants:list")]) -> Response:
    """List all tenants."""
    return json_response(TenantList(tenants=tenants.every(asked.plane.ledger)))


@routes.get("/tenants/{tenant}", response_model=Tenant, tags=["tenants"])
def show_tenant(asked: Annotated[Asked, on_tenant("tenant:read")]) -> Response:
    """Show a tenant."""
    return json_response(_shown(tenants.get(asked.plane.ledger, asked.tenant), asked))


@routes.patch("/tenants/{tenant}", response_model=Tenant, tags=["tenants"])
async def change_tenant(
    body: TenantChange, asked: Annotated[Asked, on_tenant("tenants:change")]
) -> Response:
    """Suspend a tenant (its keys answer 403, its runtime ends), resume it, or change its plan."""
    if body.state is None and body.plan is None:
        raise InvalidValueError("say what to change: state or plan")
    ledger, plans = asked.plane.ledger, asked.plane.settings.plans

    def change() -> Tenant:
        if body.plan is not None:
            limits.set_plan(ledger, asked.who, asked.tenant, body.plan, plans)
        if body.state is not None:
            tenants.set_state(ledger, asked.who, asked.tenant, body.state)
        return tenants.get(ledger, asked.tenant)

    changed = await run_in_threadpool(change)
    await asked.plane.told()
    return json_response(changed)


@routes.delete("/tenants/{tenant}", status_code=204, tags=["tenants"])
async def delete_tenant(asked: Annotated[Asked, on_tenant("tenants:change")]) -> Response:
    """Delete a tenant: its keys stop at once, its runtime drains, then its data is deleted."""
    await run_in_threadpool(tenants.delete, asked.plane.ledger, asked.who, asked.tenant)
    await asked.plane.told()
    return Response(status_code=204)


@routes.get("/tenants/{tenant}/runtime", response_model=RuntimeStatus, tags=["tenants"])
def show_runtime(asked: Annotated[Asked, on_tenant("runtime:read")]) -> Response:
    """Show how the tenant's runtime fares."""
    status = runtimes.status(asked.plane.ledger, asked.tenant)
    return json_response(status if asked.who.kind == "operator" else runtimes.private(status))


@routes.post("/tenants/{tenant}/keys", status_code=201, response_model=ApiKey, tags=["keys"])
async def create_key(body: NewKey, asked: Annotated[Asked, on_tenant("keys:write")]) -> Response:
    """Make an API key. The answer holds it, and is the only one that does."""
    expires_in = duration(body.expires_in)
    scopes = None if body.scopes is None else tuple(body.scopes)

    def create() -> ApiKey:
        return keys.create(
            asked.plane.ledger,
            asked.who,
            asked.tenant,
            name=body.name,
            scopes=scopes,
            expires_in=expires_in,
            sources=body.sources,
        )

    made = await run_in_threadpool(create)
    await asked.plane.told()
    return json_response(made, 201)


@routes.get("/tenants/{tenant}/keys", response_model=KeyList, tags=["keys"])
def list_keys(asked: Annotated[Asked, on_tenant("keys:read")]) -> Response:
    """List the tenant's API keys, without the keys themselves."""
    return json_response(KeyList(keys=keys.every(asked.plane.ledger, asked.tenant)))


@routes.post(
    "/tenants/{tenant}/keys/{key}/rotate", status_code=201, response_model=ApiKey, tags=["keys"]
)
async def rotate_key(
    key: str, asked: Annotated[Asked, on_tenant("keys:write")], body: Rotation | None = None
) -> Response:
    """Replace an API key by a new one that may do the same; the old one stops, now or soon."""
    overlap = duration(body.overlap if body else None, "overlap") or 0.0

    def rotate() -> ApiKey:
        return keys.rotate(asked.plane.ledger, asked.who, asked.tenant, key, overlap=overlap)

    made = await run_in_threadpool(rotate)
    await asked.plane.told()
    return json_response(made, 201)


@routes.delete("/tenants/{tenant}/keys/{key}", status_code=204, tags=["keys"])
async def revoke_key(key: str, asked: Annotated[Asked, on_tenant("keys:write")]) -> Response:
    """Revoke an API key; no gateway accepts it any more."""
    await run_in_threadpool(keys.revoke, asked.plane.ledger, asked.who, asked.tenant, key)
    await asked.plane.told()
    return Response(status_code=204)


@routes.get("/tenants/{tenant}/usage", response_model=Usage, tags=["usage"])
def show_usage(
    asked: Annotated[Asked, on_tenant("usage:read")], since: When = None, until: When = None
) -> Response:
    """Sum up the tenant's use; by default of this month (UTC) so far."""
    first, last = _span(asked, since, until)
    return json_response(usage.summed(asked.plane.ledger, first, last, asked.tenant)[0])


@routes.get("/usage", response_model=UsageList, tags=["usage"])
def list_usage(
    asked: Annotated[Asked, on_platform("usage:read-all")], since: When = None, until: When = None
) -> Response:
    """Sum up the use of every tenant; by default of this month (UTC) so far."""
    first, last = _span(asked, since, until)
    return json_response(UsageList(usage=usage.summed(asked.plane.ledger, first, last)))


def _span(asked: Asked, since: str | None, until: str | None) -> tuple[float, float]:
    now = asked.plane.ledger.clock()
    return moment(since, "since", month_start(now)), moment(until, "until", now)


def _shown(tenant: Tenant, asked: Asked) -> Tenant:
    if asked.who.kind == "operator" or tenant.runtime is None:
        return tenant
    return replace(tenant, runtime=runtimes.private(tenant.runtime))
