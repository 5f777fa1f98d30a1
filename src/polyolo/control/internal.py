"""What only gateways may ask of control: the snapshot, and to take their usage records."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Awaitable, Callable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polyolo.control import access
from polyolo.control.plane import Plane
from polyolo.control.service import snapshot, usage
from polyolo.errors import InvalidValueError, UnauthenticatedError
from polyolo.types import UsageRecord
from polyolo.web import decode_json, read_body

POLL_S = 20.0
"""How long a poll is held when nothing changes; shorter than what proxies cut off (30 s)."""
USAGE_BYTES = 16 << 20
"""Bytes of one batch of usage records; a record has about 250."""

_encode = msgspec.json.Encoder().encode


class SnapshotBytes:
    """The snapshot as it goes over the wire, built once for each revision that is asked for."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._lock = threading.Lock()
        self._revision = -1
        self._bytes = b""

    def newest(self) -> bytes:
        """Return the encoded snapshot of a moment not before this call. Any thread."""
        with self._lock:
            if self._revision != self._plane.changes.revision:
                built = snapshot.build(
                    self._plane.ledger, self._plane.settings.plans, self._plane.token_signer
                )
                self._bytes = _encode(built)
                self._revision = built.revision
            return self._bytes


def routes(plane: Plane) -> list[Route]:
    """Return the routes below /internal/v1, which the gateway never forwards."""
    newest = SnapshotBytes(plane).newest

    async def poll(request: Request) -> Response:
        try:
            after = int(request.query_params.get("after", "-1"))
        except ValueError:
            raise InvalidValueError("after must be a revision, a whole number") from None
        gateway = request.query_params.get("gateway", "")[:64]
        if not await plane.changes.newer(gateway, after, POLL_S):
            return Response(status_code=204)
        return Response(await run_in_threadpool(newest), media_type="application/json")

    async def take_usage(request: Request) -> Response:
        body = await read_body(request.receive, USAGE_BYTES, request.headers.get("content-length"))
        records = decode_json(body, list[UsageRecord])
        await run_in_threadpool(usage.take, plane.ledger, records)
        return Response(status_code=204)

    def guarded(
        handler: Callable[[Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def check(request: Request) -> Response:
            token = access.presented(request.headers)
            if not hmac.compare_digest(token.encode(), plane.settings.gateway_token.encode()):
                raise UnauthenticatedError("this is for gateways only")
            return await handler(request)

        return check

    return [
        Route("/internal/v1/snapshot", guarded(poll), methods=["GET"]),
        Route("/internal/v1/usage", guarded(take_usage), methods=["POST"]),
    ]
