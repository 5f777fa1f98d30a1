"""Routes of the releases that tenants' runtimes are of; for the operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_platform, on_tenant
from polyolo.control.api.bodies import ReleaseList, ReleaseMove, ReleasePin
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import releases, tenants
from polyolo.resources import Tenant
from polyolo.web import json_response

routes = APIRouter(route_class=OnceRoute, tags=["releases"])

Operator = Annotated[Asked, on_platform("releases:change")]


@routes.get("/releases", response_model=ReleaseList)
def list_releases(asked: Operator) -> Response:
    """List the releases that there are, with how many tenants are on each."""
    plane = asked.plane
    found = releases.every(plane.ledger, plane.settings.release_names)
    return json_response(ReleaseList(releases=found))


@routes.put("/releases", response_model=ReleaseList)
async def move_release(body: ReleaseMove, asked: Operator) -> Response:
    """Have a share of the tenants that are not pinned on a release; a larger one holds a smaller.

    1 makes it the platform's release, 0 takes everybody back to it.
    """
    plane = asked.plane
    known = plane.settings.release_names
    await run_in_threadpool(releases.move, plane.ledger, asked.who, body.release, body.share, known)
    found = await run_in_threadpool(releases.every, plane.ledger, known)
    return json_response(ReleaseList(releases=found))


@routes.put("/tenants/{tenant}/release", response_model=Tenant)
async def pin_release(
    body: ReleasePin, asked: Annotated[Asked, on_tenant("tenants:change")]
) -> Response:
    """Put one tenant's runtime on a release, or have it follow the platform again (null)."""
    plane = asked.plane
    known = plane.settings.release_names
    await run_in_threadpool(
        releases.pin, plane.ledger, asked.who, asked.tenant, body.release, known
    )
    await plane.in_force(asked.tenant)
    return json_response(await run_in_threadpool(tenants.get, plane.ledger, asked.tenant))
