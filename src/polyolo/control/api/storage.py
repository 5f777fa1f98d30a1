"""Routes of tenants' own storages: granted by the operator, seen by the tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.storage import OwnStorage, checked
from polyolo.resources import Storage
from polyolo.web import json_response

routes = APIRouter(prefix="/tenants/{tenant}/storage", tags=["models"])

ToGrant = Annotated[Asked, on_tenant("storage:grant")]


class Grant(BaseModel):
    """A storage of a tenant's own."""

    model_config = ConfigDict(extra="forbid")

    uri: str = Field(
        max_length=500, examples=["file:///mnt/acme", "s3://bucket/prefix", "pvc://models"]
    )
    endpoint: str = Field("", max_length=500, description="Of the bucket; default: Amazon's.")
    region: str = Field("", max_length=100)
    access_key_id: str = Field("", max_length=200)
    secret_access_key: str = Field(
        "", max_length=500, json_schema_extra={"format": "password", "writeOnly": True}
    )


@routes.put("", response_model=Storage)
async def grant_storage(body: Grant, asked: ToGrant) -> Response:
    """Let the platform read a tenant's model files where the tenant keeps them.

    `pvc://` and `image://` are mounted by the tenant's runtime itself, on Kubernetes.
    """
    storage, cluster = OwnStorage(**body.model_dump()), asked.plane.settings.cluster
    granted = await run_in_threadpool(checked, storage, cluster)
    await run_in_threadpool(asked.plane.storages.grant, asked.who, asked.tenant, granted)
    return json_response(_shown(granted))


@routes.get("", response_model=Storage)
def show_storage(asked: Annotated[Asked, on_tenant("models:read")]) -> Response:
    """Show where the tenant keeps model files of its own."""
    return json_response(_shown(asked.plane.storages.find(asked.tenant)))


@routes.delete("", status_code=204)
def withdraw_storage(asked: ToGrant) -> Response:
    """Read the tenant's storage no longer."""
    asked.plane.storages.grant(asked.who, asked.tenant, None)
    return Response(status_code=204)


def _shown(storage: OwnStorage) -> Storage:
    return Storage(
        uri=storage.uri,
        endpoint=storage.endpoint,
        region=storage.region,
        access_key_id=storage.access_key_id,
    )
