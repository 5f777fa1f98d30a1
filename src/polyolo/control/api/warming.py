"""Routes for those who do not want to wait for a runtime that sleeps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.idempotency import OnceRoute
from polyolo.control.plane import IN_FORCE_S
from polyolo.control.service import activity, runtimes
from polyolo.control.windows import MOST
from polyolo.resources import Schedule
from polyolo.types import RuntimeStatus
from polyolo.web import json_response

routes = APIRouter(tags=["tenants"], route_class=OnceRoute)


class ScheduleChange(BaseModel):
    """When a runtime is to be awake, requests or not."""

    model_config = ConfigDict(extra="forbid")

    windows: list[Annotated[str, Field(max_length=40)]] = Field(
        max_length=MOST,
        description="Hours of the week, in UTC.",
        examples=[["mon-fri 07:30-18:00", "sat 10:00-14:00"]],
    )


@routes.post("/tenants/{tenant}/runtime/warm", response_model=RuntimeStatus)
async def warm_runtime(asked: Annotated[Asked, on_tenant("runtime:warm")]) -> Response:
    """Wake the tenant's runtime, as a request would; answers once it can, or has failed."""
    status = await asked.plane.awake(asked.tenant, IN_FORCE_S)
    await asked.plane.told()
    return json_response(status if asked.who.kind == "operator" else runtimes.private(status))


@routes.get("/tenants/{tenant}/runtime/schedule", response_model=Schedule)
def show_schedule(asked: Annotated[Asked, on_tenant("runtime:read")]) -> Response:
    """Show when the tenant's runtime is kept awake."""
    return json_response(activity.schedule(asked.plane.ledger, asked.tenant))


@routes.patch("/tenants/{tenant}/runtime/schedule", response_model=Schedule)
async def change_schedule(
    body: ScheduleChange, asked: Annotated[Asked, on_tenant("runtime:schedule")]
) -> Response:
    """Keep the tenant's runtime awake in these hours of the week, and in no others."""
    made = await run_in_threadpool(
        activity.set_schedule, asked.plane.ledger, asked.who, asked.tenant, body.windows
    )
    return json_response(made)
