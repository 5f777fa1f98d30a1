"""The route of what a tenant's runtime is made of on Kubernetes, for the operator to read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.service import runtimes
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.errors import ConflictError
from polyolo.web import json_response

routes = APIRouter()

_HIDDEN = "hidden"


@routes.get("/tenants/{tenant}/manifests", response_model=dict[str, Any], tags=["tenants"])
def show_manifests(asked: Annotated[Asked, on_tenant("tenants:render")]) -> Response:
    """Show every Kubernetes object of the tenant, as a List, its keys hidden."""
    plane = asked.plane
    cluster = plane.settings.cluster
    if cluster is None:
        raise ConflictError(
            "this platform runs its runtimes as processes; start it with --driver kubernetes"
        )
    spec = runtimes.spec(
        plane.ledger,
        asked.tenant,
        locate=plane.store.uri,
        mounted=plane.storages.mounted,
        offered=plane.settings.plans,
    )
    objects = render(spec, cluster, Features(monitors=True), {})
    shown = [{**one, "data": {_HIDDEN: ""}} if one["kind"] == "Secret" else one for one in objects]
    return json_response({"apiVersion": "v1", "kind": "List", "items": shown})
