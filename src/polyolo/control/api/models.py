"""Routes of models, their versions and settings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.api.bodies import ModelList, SettingsChange, Use
from polyolo.control.artifacts import Upload
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import models
from polyolo.control.service.artifacts import Artifact
from polyolo.control.service.tenants import plan_of
from polyolo.errors import MalformedRequestError, TooLargeError
from polyolo.resources import Model, ModelVersion
from polyolo.types import DetectionSettings
from polyolo.web import json_response

_WRITE_BYTES = 1 << 20
"""Bytes gathered before a thread is bothered to hash and write them."""

routes = APIRouter(prefix="/tenants/{tenant}/models", tags=["models"], route_class=OnceRoute)


@routes.get("", response_model=ModelList)
def list_models(asked: Annotated[Asked, on_tenant("models:read")]) -> Response:
    """List the tenant's models and the platform's standard one."""
    return json_response(ModelList(models=models.every(asked.plane.ledger, asked.tenant)))


@routes.post(
    "/{name}/versions",
    status_code=201,
    response_model=ModelVersion,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The model file itself (ONNX).",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def push_version(
    request: Request,
    name: str,
    asked: Annotated[Asked, on_tenant("models:write")],
    classes: Annotated[list[str] | None, Query(description="Class names by id.")] = None,
) -> Response:
    """Upload a model file as the next version of a model, made if it is new.

    The first version of a model is in use at once; later ones are when they are put in use. The
    first model that a tenant uploads becomes its default.
    """
    plane, tenant = asked.plane, asked.tenant
    plan = await run_in_threadpool(plan_of, plane.ledger, tenant, plane.settings.plans)
    await run_in_threadpool(models.check_push, plane.ledger, tenant, name, plan)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > plan.max_model_bytes:
        raise TooLargeError(
            f"a model file may have {plan.max_model_bytes:,} bytes in the plan {plan.name}"
        )

    def record(artifact: Artifact) -> int:
        return models.push(plane.ledger, asked.who, tenant, name, artifact, plan)

    with plane.store.upload(plan.max_model_bytes) as upload:
        await _receive(request, upload)
        number = await run_in_threadpool(plane.admission.admit, upload, classes or (), record)
    await plane.in_force(tenant)
    made = await run_in_threadpool(models.version, plane.ledger, tenant, name, number)
    return json_response(made, 201)


@routes.get("/{name}", response_model=Model)
def show_model(name: str, asked: Annotated[Asked, on_tenant("models:read")]) -> Response:
    """Show a model with its versions."""
    return json_response(models.get(asked.plane.ledger, asked.tenant, name))


@routes.delete("/{name}", status_code=204)
async def delete_model(name: str, asked: Annotated[Asked, on_tenant("models:write")]) -> Response:
    """Delete a model. If it was the default, the oldest one left takes its place."""
    plane = asked.plane
    digests = await run_in_threadpool(models.delete, plane.ledger, asked.who, asked.tenant, name)
    await run_in_threadpool(plane.admission.discard, digests)
    await plane.in_force(asked.tenant)
    return Response(status_code=204)


@routes.get("/{name}/versions/{number}", response_model=ModelVersion)
def show_version(
    name: str, number: int, asked: Annotated[Asked, on_tenant("models:read")]
) -> Response:
    """Show one version of a model."""
    return json_response(models.version(asked.plane.ledger, asked.tenant, name, number))


@routes.post("/{name}/use", response_model=Model)
async def use_version(
    name: str, body: Use, asked: Annotated[Asked, on_tenant("models:write")]
) -> Response:
    """Put a version in use: it answers when a request names none."""
    ledger = asked.plane.ledger
    await run_in_threadpool(models.use, ledger, asked.who, asked.tenant, name, body.version)
    return await _in_force(name, asked)


@routes.post("/{name}/rollback", response_model=Model)
async def roll_back(name: str, asked: Annotated[Asked, on_tenant("models:write")]) -> Response:
    """Put the version back in use that was before."""
    ledger = asked.plane.ledger
    await run_in_threadpool(models.rollback, ledger, asked.who, asked.tenant, name)
    return await _in_force(name, asked)


@routes.get("/{name}/settings", response_model=DetectionSettings)
def show_settings(name: str, asked: Annotated[Asked, on_tenant("settings:read")]) -> Response:
    """Show what counts as a detection when a request does not say."""
    return json_response(models.settings(asked.plane.ledger, asked.tenant, name))


@routes.patch("/{name}/settings", response_model=DetectionSettings)
async def change_settings(
    name: str, body: SettingsChange, asked: Annotated[Asked, on_tenant("settings:write")]
) -> Response:
    """Change what counts as a detection when a request does not say."""
    plane, tenant = asked.plane, asked.tenant
    changes = body.model_dump(exclude_unset=True)
    await run_in_threadpool(models.set_settings, plane.ledger, asked.who, tenant, name, changes)
    await plane.in_force(tenant)
    return json_response(await run_in_threadpool(models.settings, plane.ledger, tenant, name))


async def _in_force(name: str, asked: Asked) -> Response:
    plane = asked.plane
    await plane.in_force(asked.tenant)
    return json_response(await run_in_threadpool(models.get, plane.ledger, asked.tenant, name))


async def _receive(request: Request, upload: Upload) -> None:
    gathered = bytearray()
    async for chunk in request.stream():  # raises ClientDisconnect when the client hangs up
        gathered += chunk
        if len(gathered) >= _WRITE_BYTES:
            await run_in_threadpool(upload.write, bytes(gathered))
            gathered.clear()
    await run_in_threadpool(upload.write, bytes(gathered))
    if not upload.size:
        raise MalformedRequestError("the body is empty; send the model file as the body")
