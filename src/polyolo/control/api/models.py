"""Routes of models, their versions and settings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.api.bodies import ModelList, SettingsChange, Use
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import golden, models, tuning, versions
from polyolo.control.service.ledger import actor
from polyolo.resources import Model, ModelSettings, ModelVersion
from polyolo.types import STANDARD
from polyolo.web import json_response

routes = APIRouter(prefix="/tenants/{tenant}/models", tags=["models"], route_class=OnceRoute)

ToRead = Annotated[Asked, on_tenant("models:read")]
ToWrite = Annotated[Asked, on_tenant("models:write")]


@routes.get("", response_model=ModelList)
def list_models(asked: ToRead) -> Response:
    """List the tenant's models and the platform's standard one."""
    return json_response(ModelList(models=models.every(asked.plane.ledger, asked.tenant)))


@routes.get("/{name}", response_model=Model)
def show_model(name: str, asked: ToRead) -> Response:
    """Show a model with its versions."""
    return json_response(models.get(asked.plane.ledger, asked.tenant, name))


@routes.delete("/{name}", status_code=204)
async def delete_model(name: str, asked: ToWrite) -> Response:
    """Delete a model. If it was the default, the oldest one left takes its place."""
    plane, tenant = asked.plane, asked.tenant

    def delete() -> None:
        with plane.ledger.reading() as connection:
            pictures = sorted(golden.digests(connection, tenant, name))
        models.delete(plane.ledger, asked.who, tenant, name)
        for digest in golden.unneeded(plane.ledger, tenant, pictures):
            plane.store.delete(tenant, digest)

    await run_in_threadpool(delete)
    await plane.in_force(tenant)
    return Response(status_code=204)


@routes.get("/{name}/versions/{number}", response_model=ModelVersion)
def show_version(name: str, number: int, asked: ToRead) -> Response:
    """Show one version of a model."""
    return json_response(models.version(asked.plane.ledger, asked.tenant, name, number))


@routes.delete("/{name}/versions/{number}", status_code=204)
async def delete_version(name: str, number: int, asked: ToWrite) -> Response:
    """Delete one version of a model that is neither in use nor on trial."""
    ledger = asked.plane.ledger
    await run_in_threadpool(versions.delete, ledger, asked.who, asked.tenant, name, number)
    await asked.plane.in_force(asked.tenant)
    return Response(status_code=204)


@routes.post("/{name}/use", response_model=Model)
async def use_version(name: str, body: Use, asked: ToWrite) -> Response:
    """Put a version in use: it answers when a request names none.

    It is compared with the one in use before; below the model's tolerance that is refused with
    409 and the comparison, unless `force` is set.
    """
    put = asked.plane.gate.put_in_use
    await run_in_threadpool(
        lambda: put(actor(asked.who), asked.tenant, name, body.version, force=body.force)
    )
    return await in_force(name, asked)


@routes.post("/{name}/rollback", response_model=Model)
async def roll_back(name: str, asked: ToWrite) -> Response:
    """Put the last good version back in use; does nothing when that was done already."""
    ledger = asked.plane.ledger
    await run_in_threadpool(versions.rollback, ledger, asked.who, asked.tenant, name)
    return await in_force(name, asked)


@routes.get("/{name}/settings", response_model=ModelSettings)
def show_settings(name: str, asked: Annotated[Asked, on_tenant("settings:read")]) -> Response:
    """Show how a model is served when a request does not say."""
    if name == STANDARD:
        return json_response(models.get(asked.plane.ledger, asked.tenant, name).settings)
    return json_response(tuning.get(asked.plane.ledger, asked.tenant, name))


@routes.patch("/{name}/settings", response_model=ModelSettings)
async def change_settings(
    name: str, body: SettingsChange, asked: Annotated[Asked, on_tenant("settings:write")]
) -> Response:
    """Change how a model is served when a request does not say.

    Input size, engine and precision take effect by opening the model anew, beside the one that
    serves meanwhile; what cannot be opened so is refused.
    """
    plane, tenant = asked.plane, asked.tenant
    changes = body.model_dump(exclude_unset=True)

    def change() -> None:
        if changes.keys() & tuning.RELOADING:
            before = tuning.get(plane.ledger, tenant, name)
            after = tuning.changed(before, changes)
            if any(getattr(before, one) != getattr(after, one) for one in tuning.RELOADING):
                plane.gate.check_settings(tenant, name, after)
        tuning.change(plane.ledger, asked.who, tenant, name, changes)

    await run_in_threadpool(change)
    await plane.in_force(tenant)
    return json_response(await run_in_threadpool(tuning.get, plane.ledger, tenant, name))


async def in_force(name: str, asked: Asked) -> Response:
    """Return a model once the runtime has what was changed."""
    plane = asked.plane
    await plane.in_force(asked.tenant)
    return json_response(await run_in_threadpool(models.get, plane.ledger, asked.tenant, name))
