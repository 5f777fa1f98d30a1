"""Routes by which versions are tried: rollouts, comparisons, golden pictures."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.comparejob import ExpectedBox
from polyolo.control.api.bodies import GoldenList, GoldenPut, Promotion, RolloutBegin
from polyolo.control.api.models import ToRead, ToWrite, in_force
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import golden, models, rollouts
from polyolo.control.service.golden import Golden
from polyolo.control.service.ledger import actor
from polyolo.errors import (
    ConflictError,
    InvalidValueError,
    MalformedRequestError,
    TooLargeError,
    UnsupportedImageError,
)
from polyolo.resources import GoldenPicture, Model
from polyolo.rollouts import GateReport, RolloutRecord, RolloutRule
from polyolo.web import decode_json, json_response, read_body

PICTURE_BYTES = 8 << 20
"""Bytes of one golden picture: a phone's photo as it is."""
_BODY_BYTES = PICTURE_BYTES * 4 // 3 + (1 << 20)  # in base64, and a thousand boxes
_KINDS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")

routes = APIRouter(prefix="/tenants/{tenant}/models/{name}", tags=["models"], route_class=OnceRoute)


@routes.get("/rollout", response_model=RolloutRecord | None)
def show_rollout(name: str, asked: ToRead) -> Response:
    """Show the model's last rollout and what it has shown; null before the first."""
    return json_response(models.get(asked.plane.ledger, asked.tenant, name).rollout)


@routes.put("/rollout", response_model=Model)
async def begin_rollout(name: str, body: RolloutBegin, asked: ToWrite) -> Response:
    """Put a version on trial beside the one in use, or change the share or rule of one that is.

    A canary answers its share of the requests that name no version; a shadow sees a copy of them.
    Which ones is decided by the request's id: the first 8 bytes of its SHA-256, as a fraction of
    2^64, lie below the share.
    """
    try:
        rule = None if body.rule is None else RolloutRule(**body.rule.model_dump())
    except ValueError as error:
        raise InvalidValueError(f"rule: {error}") from None

    def begin() -> None:
        rollouts.begin(
            asked.plane.ledger,
            asked.who,
            asked.tenant,
            name,
            body.version,
            share=body.share,
            shadow=body.shadow,
            rule=rule,
        )

    await run_in_threadpool(begin)
    return await in_force(name, asked)


@routes.delete("/rollout", response_model=Model)
async def abort_rollout(name: str, asked: ToWrite) -> Response:
    """End the rollout; the version in use answers everything. Does nothing where there is none."""
    ledger, by = asked.plane.ledger, actor(asked.who)
    await run_in_threadpool(rollouts.abort, ledger, by, asked.tenant, name)
    return await in_force(name, asked)


@routes.post("/rollout/promote", response_model=Model)
async def promote_rollout(name: str, asked: ToWrite, body: Promotion | None = None) -> Response:
    """Put the version on trial in use; it is compared first, as by `use`."""
    plane, tenant = asked.plane, asked.tenant

    def promote() -> None:
        record = models.get(plane.ledger, tenant, name).rollout
        if record is None or record.state == "aborted":
            raise ConflictError(f"no version of {name} is on trial")
        force = body is not None and body.force
        plane.gate.put_in_use(actor(asked.who), tenant, name, record.version, force=force)

    await run_in_threadpool(promote)
    return await in_force(name, asked)


@routes.get("/versions/{number}/comparison", response_model=GateReport)
def compare_version(name: str, number: int, asked: ToRead) -> Response:
    """Compare a version with the one in use, as before it is put in use; changes nothing."""
    return json_response(asked.plane.gate.report(asked.tenant, name, number))


@routes.get("/golden", response_model=GoldenList)
def list_golden(name: str, asked: ToRead) -> Response:
    """List the model's golden pictures; the pictures themselves are never given out again."""
    plane = asked.plane
    found = golden.every(plane.ledger, plane.vault, asked.tenant, name)
    return json_response(GoldenList(golden=found))


@routes.put(
    "/golden/{number}",
    response_model=GoldenPicture,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": GoldenPut.model_json_schema()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def put_golden(request: Request, name: str, number: int, asked: ToWrite) -> Response:
    """Keep a picture to compare versions on, sealed by the tenant's own key.

    The body is the picture, or JSON with the picture in base64 and the boxes that are known to be
    in it. Where they are not known, what the version in use sees is expected.
    """
    plane, tenant = asked.plane, asked.tenant
    before = await run_in_threadpool(_digest, asked, name, number)  # is there such a model?
    length = request.headers.get("content-length")
    body = await read_body(request.receive, _BODY_BYTES, length)
    picture, expected = _read(body, request.headers.get("content-type", ""))
    one = Golden(
        number=number,
        digest=hashlib.sha256(picture).hexdigest(),
        size=len(picture),
        expected=expected,
    )

    def put() -> GoldenPicture:
        golden.put(plane.ledger, plane.vault, asked.who, tenant, name, one)
        plane.store.keep(tenant, one.digest, [picture])
        _forget(asked, before)
        found = golden.every(plane.ledger, plane.vault, tenant, name)
        return next(each for each in found if each.number == number)

    return json_response(await run_in_threadpool(put))


@routes.delete("/golden/{number}", status_code=204)
def delete_golden(name: str, number: int, asked: ToWrite) -> Response:
    """Delete a golden picture."""
    before = _digest(asked, name, number)
    golden.delete(asked.plane.ledger, asked.who, asked.tenant, name, number)
    _forget(asked, before)
    return Response(status_code=204)


def _digest(asked: ToRead, name: str, number: int) -> list[str]:
    return golden.digest_of(asked.plane.ledger, asked.tenant, name, number)


def _forget(asked: ToRead, digests: list[str]) -> None:
    for digest in golden.unneeded(asked.plane.ledger, asked.tenant, digests):
        asked.plane.store.delete(asked.tenant, digest)


def _read(body: bytes, content_type: str) -> tuple[bytes, tuple[ExpectedBox, ...] | None]:
    """Return the picture and the expected boxes in a body."""
    expected = None
    if "json" in content_type:
        document = decode_json(body, dict[str, Any])
        if set(document) - {"picture", "expected"} or not isinstance(document.get("picture"), str):
            raise MalformedRequestError("send picture, in base64, and expected, a list of boxes")
        try:
            body = base64.b64decode(document["picture"], validate=True)
        except (binascii.Error, ValueError):
            raise MalformedRequestError("picture must be in base64") from None
        try:
            expected = msgspec.convert(
                document.get("expected"), tuple[ExpectedBox, ...] | None, strict=False
            )
        except msgspec.ValidationError as error:
            raise InvalidValueError(f"expected: {error}") from None
    if len(body) > PICTURE_BYTES:
        raise TooLargeError(f"a golden picture may have {PICTURE_BYTES:,} bytes")
    if not body.startswith(_KINDS) and not (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        raise UnsupportedImageError("a golden picture is a JPEG, PNG, WebP or BMP image")
    return body, expected
