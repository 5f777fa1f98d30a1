"""Routes by which model files come in: in one go, or resumed where the connection broke off.

Resumable uploads follow the IETF's draft "Resumable Uploads for HTTP": Upload-Offset,
Upload-Complete, Upload-Length and Upload-Limit mean here what they mean there. Only opening one is
ours: a model's name belongs to it, so that it takes a JSON document.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from polyolo.control.api.asking import Asked, on_tenant
from polyolo.control.api.bodies import NewRegistration, NewUpload, UploadList
from polyolo.control.arrivals import LEAST_BYTES, PIECE_BYTES
from polyolo.control.bodylimit import LIMIT_BYTES
from polyolo.control.idempotency import OnceRoute
from polyolo.control.plane import Plane
from polyolo.control.service import limits, models, uploads
from polyolo.control.service.uploads import READY, RECEIVING, REFUSED
from polyolo.control.storage import checked_path
from polyolo.errors import (
    ConflictError,
    InvalidValueError,
    MalformedRequestError,
    NotFoundError,
    NotReadyError,
    TooLargeError,
    by_code,
)
from polyolo.resources import ModelVersion, Upload
from polyolo.types import Plan
from polyolo.web import json_response, read_body

CHECKED_S = 600.0
"""Seconds that the answer to a file sent in one go waits for it to be checked: it takes a second
or two, and a minute at most, but other tenants' files may be first."""
_LONGEST_WAIT_S = 30

_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

routes = APIRouter(prefix="/tenants/{tenant}", tags=["models"], route_class=OnceRoute)

ToWrite = Annotated[Asked, on_tenant("models:write")]
ToRead = Annotated[Asked, on_tenant("models:read")]


class OffsetError(ConflictError):
    """The bytes do not go on where the upload stands."""

    code, title = "mismatching-upload-offset", "Another offset"

    def __init__(self, offset: int, received: int) -> None:
        super().__init__(f"{received} bytes have come; go on there, not at {offset}")
        self.received = received

    def headers(self) -> dict[str, str]:
        """Return where to go on."""
        return {"upload-offset": str(self.received)}


@routes.post(
    "/models/{name}/versions",
    status_code=201,
    response_model=ModelVersion,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The model file itself (ONNX), or where it is in a storage of yours.",
            "content": {
                "application/octet-stream": _BYTES,
                "application/json": {"schema": NewRegistration.model_json_schema()},
            },
        }
    },
)
async def push_version(
    request: Request,
    name: str,
    asked: ToWrite,
    classes: Annotated[list[str] | None, Query(description="Class names by id.")] = None,
) -> Response:
    """Upload a model file as the next version of a model, made if it is new.

    Or register one that is in the tenant's own storage: it is read and checked, not kept.

    The first version of a model is in use at once; later ones are when they are put in use. The
    first model that a tenant uploads becomes its default. For files that take long to send,
    see `/uploads`.
    """
    plane, tenant = asked.plane, asked.tenant
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdigit() else None
    plan = await run_in_threadpool(limits.of, plane.ledger, tenant, plane.settings.plans)
    if "json" in request.headers.get("content-type", ""):
        return await _register(request, name, asked, plan)
    if size == 0:
        raise _EMPTY
    upload = await run_in_threadpool(
        lambda: uploads.begin(
            plane.ledger, asked.who, tenant, name, plan, size=size, classes=classes or ()
        )
    )
    try:
        end = await _receive(request, asked, upload, 0, plan.max_model_bytes)
        if not end:
            raise _EMPTY
        await run_in_threadpool(uploads.complete, plane.ledger, tenant, upload.id, end)
    except BaseException:
        await run_in_threadpool(_drop, asked, upload.id)
        raise
    return await _version(asked, upload)


async def _register(request: Request, name: str, asked: Asked, plan: Plan) -> Response:
    plane, tenant = asked.plane, asked.tenant
    body = await read_body(request.receive, LIMIT_BYTES, request.headers.get("content-length"))
    try:
        told = NewRegistration.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    storage = await run_in_threadpool(plane.storages.find, tenant)
    if storage.mounted and told.size is None:
        raise InvalidValueError(
            "size: say how many bytes the file has; only your runtime can look for itself"
        )
    upload = await run_in_threadpool(
        lambda: uploads.begin(
            plane.ledger,
            asked.who,
            tenant,
            name,
            plan,
            size=told.size,
            sha256=told.sha256,
            classes=told.classes,
            uri=checked_path(told.uri),
        )
    )
    return await _version(asked, upload)


async def _version(asked: Asked, upload: Upload) -> Response:
    """Answer with what a file has become, once that is decided."""
    plane, tenant = asked.plane, asked.tenant
    decided = await _decided(plane, tenant, upload.id, CHECKED_S)
    if decided.state == REFUSED:
        raise by_code(decided.code, decided.reason)
    if decided.version is None:
        raise NotReadyError(
            f"the file has come, but there was no time to check it yet; see upload {upload.id}",
            retry_after=30.0,
        )
    await plane.in_force(tenant)
    made = await run_in_threadpool(
        models.version, plane.ledger, tenant, upload.model, decided.version
    )
    return json_response(made, 201)


@routes.post("/uploads", status_code=201, response_model=Upload)
async def begin_upload(body: NewUpload, asked: ToWrite) -> Response:
    """Open an upload that can be resumed; send the file to its Location by PATCH."""
    plane, tenant = asked.plane, asked.tenant
    plan = await run_in_threadpool(limits.of, plane.ledger, tenant, plane.settings.plans)
    upload = await run_in_threadpool(
        lambda: uploads.begin(
            plane.ledger,
            asked.who,
            tenant,
            body.model,
            plan,
            size=body.size,
            sha256=body.sha256 or "",
            classes=body.classes,
        )
    )
    location = f"/api/v1/tenants/{tenant}/uploads/{upload.id}"
    return json_response(upload, 201, {"location": location, **_told(upload)})


@routes.get("/uploads", response_model=UploadList)
def list_uploads(asked: ToRead) -> Response:
    """List uploads, the newest first: those under way, and the outcomes of the last 7 days."""
    return json_response(UploadList(uploads=uploads.every(asked.plane.ledger, asked.tenant)))


@routes.head("/uploads/{upload}", status_code=204)
def ask_offset(upload: str, asked: ToRead) -> Response:
    """Say in Upload-Offset how many bytes have come: there the sender goes on."""
    return Response(status_code=204, headers=_told(_standing(asked, upload)))


@routes.get("/uploads/{upload}", response_model=Upload)
async def show_upload(
    upload: str,
    asked: ToRead,
    wait: Annotated[
        int, Query(ge=0, le=_LONGEST_WAIT_S, description="Seconds to wait for an outcome.")
    ] = 0,
) -> Response:
    """Show how far an upload is, and what came of it."""
    seen = await run_in_threadpool(_standing, asked, upload)
    if wait and seen.state != RECEIVING:
        seen = await _decided(asked.plane, asked.tenant, upload, wait)
    return json_response(seen, 200, _told(seen))


@routes.patch(
    "/uploads/{upload}",
    status_code=204,
    openapi_extra={
        "parameters": [
            {
                "name": "Upload-Offset",
                "in": "header",
                "required": True,
                "schema": {"type": "integer", "minimum": 0},
                "description": "Place in the file of the first byte sent.",
            }
        ],
        "requestBody": {
            "required": True,
            "description": "The file from there on, all of it or the next part; as "
            "application/partial-upload where a client has the choice.",
            "content": {"application/octet-stream": _BYTES},
        },
    },
)
async def append(request: Request, upload: str, asked: ToWrite) -> Response:
    """Send the file, or go on with it. Whatever has come when the connection breaks is kept."""
    plane, tenant = asked.plane, asked.tenant
    seen = await run_in_threadpool(_standing, asked, upload)
    given = request.headers.get("upload-offset", "")
    if not given.isdecimal() or len(given) > 15:
        raise MalformedRequestError("say in Upload-Offset where the bytes go, as HEAD tells it")
    if seen.state != RECEIVING or seen.size is None:
        raise ConflictError(f"this upload takes no more bytes: it is {seen.state}")
    if int(given) != seen.received:
        raise OffsetError(int(given), seen.received)
    length = request.headers.get("content-length", "")
    if length.isdigit() and seen.received + int(length) > seen.size:
        raise _too_long(seen.size)
    try:
        end = await _receive(request, asked, seen, seen.received, seen.size)
    finally:
        try:
            await run_in_threadpool(uploads.touch, plane.ledger, tenant, upload)
        except NotFoundError:  # cancelled meanwhile: nobody would look for what has just come
            await run_in_threadpool(plane.store.drop, tenant, upload)
            raise
    if end == seen.size:
        await run_in_threadpool(uploads.complete, plane.ledger, tenant, upload, end)
    return Response(status_code=204, headers=_told(replace(seen, received=end)))


@routes.delete("/uploads/{upload}", status_code=204)
def cancel_upload(upload: str, asked: ToWrite) -> Response:
    """Cancel an upload, or forget its outcome."""
    uploads.cancel(asked.plane.ledger, asked.who, asked.tenant, upload)
    asked.plane.store.drop(asked.tenant, upload)
    return Response(status_code=204)


_EMPTY = MalformedRequestError("the body is empty; send the model file as the body")


def _too_long(limit: int) -> TooLargeError:
    return TooLargeError(f"the file is larger than the {limit:,} bytes that it may have")


def _standing(asked: Asked, identifier: str) -> Upload:
    """Return an upload with how many bytes have come."""
    plane, tenant = asked.plane, asked.tenant
    upload = uploads.get(plane.ledger, tenant, identifier)
    if upload.state != RECEIVING:
        return replace(upload, received=upload.size or 0)
    return replace(upload, received=plane.store.received(tenant, identifier))


def _told(upload: Upload) -> dict[str, str]:
    complete = upload.state != RECEIVING or upload.received == upload.size
    return {
        "upload-offset": str(upload.received),
        "upload-complete": f"?{int(complete)}",
        "upload-length": str(upload.size or 0),
        "upload-limit": f"max-size={upload.size or 0}, min-append-size={LEAST_BYTES}",
        "cache-control": "no-store",
    }


def _drop(asked: Asked, identifier: str) -> None:
    with suppress(NotFoundError, ConflictError):
        uploads.cancel(asked.plane.ledger, asked.who, asked.tenant, identifier)
    asked.plane.store.drop(asked.tenant, identifier)


async def _receive(request: Request, asked: Asked, upload: Upload, at: int, limit: int) -> int:
    """Store the body from `at` on, and return where it ends.

    What has come before the client hung up is stored too. Raises ClientDisconnect, TooLargeError
    beyond `limit`, ConflictError when somebody else sends the same upload.
    """
    plane, held = asked.plane, bytearray()

    async def keep() -> None:
        nonlocal at
        add = plane.store.add
        if not await run_in_threadpool(add, asked.tenant, upload.id, at, bytes(held)):
            raise ConflictError("another request is sending this upload; ask for its offset")
        at += len(held)
        held.clear()

    with plane.arrivals.one(asked.tenant):
        try:
            async for chunk in request.stream():
                held += chunk
                if at + len(held) > limit:
                    raise _too_long(limit)
                if len(held) >= PIECE_BYTES:
                    await keep()
        except ClientDisconnect:
            if len(held) >= LEAST_BYTES:
                await keep()
            raise
        if len(held) >= LEAST_BYTES or (held and upload.size in (None, at + len(held))):
            await keep()
    return at


async def _decided(plane: Plane, tenant: str, identifier: str, seconds: float) -> Upload:
    """Return an upload once it is decided, or as it stands after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        revision = plane.changes.revision
        upload = await run_in_threadpool(uploads.get, plane.ledger, tenant, identifier)
        left = deadline - time.monotonic()
        if upload.state in (READY, REFUSED) or left <= 0 or plane.changes.closed:
            return upload
        await plane.changes.until(lambda: plane.changes.revision > revision, left)  # noqa: B023
