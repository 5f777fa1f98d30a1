"""What only gateways may ask: the snapshot, its revision, a runtime woken, their counts taken."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from polyolo.control import access
from polyolo.control.plane import Plane
from polyolo.control.scaling import IN_FLIGHT
from polyolo.control.service import activity, snapshot, usage
from polyolo.errors import InvalidValueError, UnauthenticatedError
from polyolo.types import UsageRecord
from polyolo.web import decode_json, json_response, read_body

POLL_S = 20.0
"""How long a poll is held when nothing changes; shorter than what proxies cut off (30 s)."""
USAGE_BYTES = 16 << 20
"""Bytes of one batch of usage records; a record has about 250."""

WAKE_S = 8.0
"""How long the answer to a call to wake a runtime is held; the gateway asks again after that."""

_encode = msgspec.json.Encoder().encode


class SnapshotBytes:
    """Snapshots as they go over the wire, each built once however many gateways want it."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._lock = threading.Lock()
        self._revision = -1
        self._built: dict[tuple[int, int], bytes] = {}

    def newest(self, after: int) -> bytes:
        """Return the encoded snapshot of a moment not before this call, for a gateway that has
        revision `after` (-1: nothing). Any thread."""
        plane = self._plane
        gateways = plane.changes.gateways()
        with self._lock:
            if self._revision != plane.changes.revision:
                self._built.clear()
            if (after, gateways) not in self._built:
                built = snapshot.build(
                    plane.ledger,
                    plane.settings.plans,
                    plane.token_signer,
                    after=after if after >= 0 else None,
                    gateways=gateways,
                )
                if built.revision != self._revision:
                    self._built.clear()
                self._built[after, gateways] = _encode(built)
                self._revision = built.revision
            return self._built[after, gateways]


async def _while_there(request: Request, wait: Coroutine[Any, Any, bool]) -> bool:
    """Return what `wait` gives; end it with ClientDisconnect when whoever asks hangs up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting, watching = asyncio.create_task(wait), asyncio.create_task(hung_up())
    try:
        await asyncio.wait({waiting, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        waiting.cancel()
        watching.cancel()


def routes(plane: Plane) -> list[Route]:
    """Return the routes below /internal/v1, which the gateway never forwards."""
    newest = SnapshotBytes(plane).newest

    async def poll(request: Request) -> Response:
        asked = request.query_params
        try:
            after, told = int(asked.get("after", "-1")), int(asked.get("gateways", "-1"))
        except ValueError:
            raise InvalidValueError("after and gateways must be whole numbers") from None
        gateway = asked.get("gateway", "")[:64]
        news = plane.changes.newer(gateway, after, told, POLL_S)
        if not await _while_there(request, news):
            return Response(status_code=204)
        return Response(await run_in_threadpool(newest, after), media_type="application/json")

    async def take_usage(request: Request) -> Response:
        body = await read_body(request.receive, USAGE_BYTES, request.headers.get("content-length"))
        records = decode_json(body, list[UsageRecord])
        taken = await run_in_threadpool(usage.take, plane.ledger, records, plane.settings.plans)
        return json_response(taken)

    async def take_activity(request: Request) -> Response:
        body = await read_body(request.receive, USAGE_BYTES, request.headers.get("content-length"))
        in_flight = decode_json(body, dict[str, float])
        gateway = request.query_params.get("gateway", "")[:64]
        await run_in_threadpool(activity.report, plane.ledger, gateway, in_flight)
        # Who is busy may be in need of more.
        plane.leader.look_at([tenant for tenant, load in in_flight.items() if load > IN_FLIGHT])
        return Response(status_code=204)

    async def revision(_: Request) -> Response:
        # Other control planes' changes are followed five times a second; who asks waits for one.
        newest = await run_in_threadpool(plane.ledger.revision)
        plane.changes.publish(newest)
        return json_response(newest)

    async def wake(request: Request) -> Response:
        return json_response(await plane.awake(request.query_params.get("tenant", ""), WAKE_S))

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
        Route("/internal/v1/revision", guarded(revision), methods=["GET"]),
        Route("/internal/v1/usage", guarded(take_usage), methods=["POST"]),
        Route("/internal/v1/activity", guarded(take_activity), methods=["POST"]),
        Route("/internal/v1/wake", guarded(wake), methods=["POST"]),
    ]
