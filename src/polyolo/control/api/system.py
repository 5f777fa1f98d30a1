"""Routes about the machine that the platform runs on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_platform
from polyolo.resources import HostIsolation
from polyolo.sandbox.report import report
from polyolo.web import json_response

routes = APIRouter(tags=["system"])


@routes.get("/system/isolation", response_model=HostIsolation)
def show_isolation(asked: Annotated[Asked, on_platform("system:read")]) -> Response:
    """Show what keeps tenants apart on this host, what is missing, and why."""
    plane = asked.plane
    return json_response(report(plane.isolation, strict=plane.settings.strict_isolation))
