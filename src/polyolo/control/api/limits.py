"""Routes of what a tenant may use."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field, create_model
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control import plans
from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.plans import Range
from polyolo.control.service import limits
from polyolo.resources import Limits
from polyolo.web import json_response

routes = APIRouter(tags=["limits"])


def _body(name: str, says: str, ranges: dict[str, Range], **more: Any) -> Any:
    """Return the model of a body with a field for each range; the ranges are judged later."""
    described: dict[str, Any] = {
        field: (
            (int if limit.whole else float) | None,
            Field(
                None,
                description="null: the plan's",
                json_schema_extra={
                    "minimum": 0 if limit.zero else limit.least,
                    "maximum": limit.most,
                },
            ),
        )
        for field, limit in ranges.items()
    }
    config = ConfigDict(extra="forbid", strict=True)
    return create_model(name, __config__=config, __doc__=says, **described, **more)


_Resources = _body(
    "ResourcesChange", "What one replica of a runtime may use of its machine.", plans.RESOURCES
)
LimitsChange = _body(
    "LimitsChange",
    "Limits to change; a field left out stays, null puts it back to the plan's.",
    plans.RANGES,
    resources=(_Resources | None, None),
)


@routes.get("/tenants/{tenant}/limits", response_model=Limits)
def show_limits(asked: Annotated[Asked, on_tenant("limits:read")]) -> Response:
    """Show what the tenant may use, and what it has used of this month."""
    plane = asked.plane
    return json_response(limits.get(plane.ledger, asked.tenant, plane.settings.plans))


@routes.patch("/tenants/{tenant}/limits", response_model=Limits)
async def change_limits(
    body: LimitsChange,  # type: ignore[valid-type]  # made above, from the table of ranges
    asked: Annotated[Asked, on_tenant("limits:write")],
) -> Response:
    """Put limits of the tenant's own in place of its plan's; in force at once."""
    plane, tenant = asked.plane, asked.tenant
    given = body.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
    if given.get("resources", {}) is None:
        given["resources"] = dict.fromkeys(plans.RESOURCES)
    changes = plans.checked(given)

    def work() -> None:
        limits.change(plane.ledger, asked.who, tenant, changes, plane.settings.plans)

    await run_in_threadpool(work)
    await plane.told()
    found = await run_in_threadpool(limits.get, plane.ledger, tenant, plane.settings.plans)
    return json_response(found)
