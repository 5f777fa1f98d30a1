"""Routes of a tenant's data as a whole: exported, erased, and the erasure's certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from polyolo.control import export
from polyolo.control.api.asking import Asked, Visitor, in_public, on_platform, on_tenant
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import erasures, tenants
from polyolo.errors import InvalidValueError, NotFoundError
from polyolo.resources import Erasure
from polyolo.web import json_response

routes = APIRouter(tags=["privacy"], route_class=OnceRoute)

_NO_STORE = {"cache-control": "no-store"}
_PIECE = 1 << 18  # bytes of a model file in memory


class Confirmation(BaseModel):
    """That a tenant is really to be erased."""

    model_config = ConfigDict(extra="forbid")
    confirm: str = Field(
        max_length=63,
        description="The tenant's name; its id once it is deleted.",
        examples=["acme"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureList:
    """All erasures."""

    erasures: list[Erasure]


@routes.get(
    "/tenants/{tenant}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "The archive."}},
)
def export_tenant(asked: Annotated[Asked, on_tenant("tenant:export")]) -> Response:
    """Export everything about the tenant in one zip archive, which is sent as it is made.

    `manifest.json` comes last, signed by the platform, with the SHA-256 of every member.
    `polyolo tenants verify` checks all of it without the platform.
    """
    plane = asked.plane
    made = export.archive(
        plane.ledger, plane.vault, plane.store.read, asked.tenant, plane.token_signer.issuer
    )
    named = {"content-disposition": f'attachment; filename="{asked.tenant}-export.zip"'}
    return StreamingResponse(made, media_type="application/zip", headers=_NO_STORE | named)


@routes.post("/tenants/{tenant}/erasure", status_code=202, response_model=Erasure)
async def erase_tenant(
    body: Confirmation, asked: Annotated[Asked, on_tenant("tenant:erase", gone=True)]
) -> Response:
    """Erase a tenant with everything but what has to be kept. There is no way back.

    Its credentials stop at once, the rest takes moments. The answer's `id` is the only key to the
    certificate that lists what was removed and what was kept, why and until when: keep it, since
    nobody can sign in for it afterwards. Doing it again answers the same.
    """
    plane = asked.plane

    def order() -> Erasure:
        try:
            name = tenants.get(plane.ledger, asked.tenant).name
        except NotFoundError:  # deleted before: only its traces are left
            name = asked.tenant
        if body.confirm != name:
            raise InvalidValueError("confirm: it must be the name of the tenant that is erased")
        return erasures.order(plane.ledger, asked.who, asked.tenant)

    ordered = await run_in_threadpool(order)
    await plane.told()
    return json_response(ordered, 202, _NO_STORE)


@routes.get("/erasures/{erasure}", response_model=Erasure)
def show_erasure(erasure: str, visitor: Annotated[Visitor, in_public("erasures:read")]) -> Response:
    """Show an erasure, with its certificate once it is done. Needs no credential but the id."""
    return json_response(erasures.get(visitor.plane.ledger, erasure), headers=_NO_STORE)


@routes.get("/erasures", response_model=ErasureList)
def list_erasures(asked: Annotated[Asked, on_platform("erasures:list")]) -> Response:
    """List all erasures, oldest first."""
    return json_response(ErasureList(erasures=erasures.every(asked.plane.ledger)))
