"""Puts the gateway together: `Detections` reads top to bottom as a request's path."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from polyolo import telemetry, web
from polyolo.errors import (
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PolyoloError,
)
from polyolo.gateway import routing
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.headers import for_control, for_runtime
from polyolo.gateway.inbound import Leash
from polyolo.gateway.limits import Bound
from polyolo.gateway.proxy import Exchange
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import address_of, networks
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.gateway.usage import NOTHING, Ledger, Meter, metered
from polyolo.types import Principal

_TO_CONTROL = ("/api", "/oauth2", "/openapi.json", "/docs", "/.well-known")
_OWN = ("/livez", "/readyz", "/metrics")
_LAST_FLUSH_S = 5.0  # for handing over usage when the process ends


class Detections:
    """Serves /v1/detect and /v2: authenticate, admit, pick the endpoint, forward, close."""

    def __init__(self, settings: Settings, directory: Directory, meter: Meter) -> None:
        self._settings = settings
        self._directory = directory
        self._meter = meter
        self._proxies = networks(settings.trusted_proxies)
        self._inside = Bound()
        self._upstreams: dict[str, Upstream] = {}

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request. Raises what is to be answered."""
        started = time.perf_counter()
        settings, directory, meter = self._settings, self._directory, self._meter
        scope = exchange.scope
        log = scope["state"]["log"]
        source = address_of(scope, self._proxies)
        who: Principal | None = None
        name = ""
        status = 500
        cold = False
        try:
            if scope["path"] == "/v1/detect" and scope["method"] != "POST":
                raise MethodNotAllowedError("send the picture with POST")
            credential = presented(scope["headers"])
            if why := directory.distrust():
                raise NotReadyError(f"{why}; come again shortly")
            principal = authenticate(credential, directory.keys, directory.book, time.time())
            ranges = directory.ranges.get(principal.id, ())
            route = authorise(principal, directory.tenants, ranges=ranges, source=source)
            who, tenant, name = principal, route.tenant, route.name
            log["tenant"] = name
            full = OverloadedError("too many requests of this tenant at once; come again shortly")
            with (
                self._inside.admit(tenant, route.plan.max_in_flight, full),
                meter.in_flight(name),
                Leash(settings.deadline_s) as leash,
            ):
                exchange.inbound.bound(settings.max_body_bytes)
                await exchange.take_in(leash, settings.whole_body_bytes)
                endpoint, cold = await directory.pick_endpoint(tenant)
                headers = for_runtime(scope, cold_start=cold)
                upstream = self._upstream(endpoint)
                await exchange.forward(leash, upstream, headers, repeatable=True)
            status = exchange.status
        except PolyoloError as error:
            status = error.status
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            status = web.CLIENT_CLOSED_REQUEST
            raise
        finally:
            said = metered(exchange.ours) if exchange.ours else NOTHING
            if said.model:
                log["model"] = f"{said.model}:{said.version}"
            meter.count(name, said.model, status, time.perf_counter() - started, cold=cold)
            if who and _is_metered(scope):
                received = exchange.inbound.received
                meter.bill(who, str(source or ""), status, said, bytes_in=received, cold=cold)

    def _upstream(self, endpoint: str) -> Upstream:
        upstream = self._upstreams.get(endpoint)
        if upstream is None:
            # No bound of its own: what a tenant has in flight is bounded by its plan already.
            upstream = self._upstreams[endpoint] = Upstream(endpoint)
        return upstream

    def keep(self, endpoints: set[str]) -> None:
        """Close the connections to endpoints that are gone."""
        for endpoint in self._upstreams.keys() - endpoints:
            self._upstreams.pop(endpoint).close()


def _is_metered(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/v1/detect" or bool(path.endswith("/infer") and scope["method"] == "POST")


class ControlApi:
    """Passes the control plane's public paths on, as they are, credentials included."""

    def __init__(self, settings: Settings, control: Upstream) -> None:
        self._settings = settings
        self._control = control
        self._proxies = networks(settings.trusted_proxies)

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request. Raises what is to be answered."""
        with Leash(self._settings.control_deadline_s) as leash:
            await exchange.take_in(leash, self._settings.whole_body_bytes)
            source = address_of(exchange.scope, self._proxies)
            headers = for_control(exchange.scope, str(source or ""))
            await exchange.forward(leash, self._control, headers, repeatable=False)


def _means_the_same_everywhere(path: str) -> bool:
    """Say whether no hop can read a decoded path as another one: no way round a prefix check."""
    return not (
        "//" in path
        or "\\" in path
        or "%" in path
        or any(segment in (".", "..") for segment in path.split("/"))
    )


def _below(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def door(detections: Detections, control: ControlApi, own: ASGIApp) -> ASGIApp:
    """Return the application that sends each path where it belongs. own: probes and metrics."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path: str = scope["path"]
        exchange = Exchange(scope, receive, send)
        try:
            if not _means_the_same_everywhere(path):
                raise NotFoundError("there is nothing at this path")
            if path == "/v1/detect" or _below(path, ("/v2",)):
                await detections(exchange)
            elif _below(path, _TO_CONTROL):
                await control(exchange)
            elif path in _OWN:
                await own(scope, receive, send)
                return
            else:
                raise NotFoundError("there is nothing at this path")
        except PolyoloError as error:
            if exchange.status:
                raise
            await exchange.refuse(error)
        await exchange.finish()

    return app


def probes(directory: Directory, metrics: telemetry.Metrics) -> ASGIApp:
    """Return the application of /livez, /readyz and /metrics.

    /readyz is 200 while control confirms credentials, so that detections can be served; it tells
    the snapshot's revision and the seconds since control last confirmed it.
    """

    async def live() -> str:
        return ""

    async def ready() -> str:
        return directory.distrust()

    async def readyz(_: Request) -> Response:
        reason, age = await ready(), directory.age_s()
        facts = {"revision": directory.revision, "snapshot_age_s": age and round(age, 1)}
        return web.json_response({"status": reason or "ok", **facts}, 503 if reason else 200)

    shared = web.probes(live=live, ready=ready, registry=metrics.registry)
    return Router([Route("/readyz", readyz), *shared])


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[ASGIApp]:
    """Build a gateway, keep its snapshot fresh and its usage flowing while the context lasts."""
    metrics = telemetry.Metrics()
    control = Upstream(settings.control, limit=settings.control_connections)
    internal = Upstream(settings.control)  # its own, so that public calls cannot crowd it out
    ledger = Ledger(settings, internal, metrics)
    meter = Meter(ledger, metrics)

    def swapped(directory: Directory) -> None:
        detections.keep({e for route in directory.tenants.values() for e in route.endpoints})
        meter.keep({route.name for route in directory.tenants.values()})

    directory = Directory(settings, on_swap=swapped)
    detections = Detections(settings, directory, meter)
    tasks = [
        asyncio.create_task(routing.pull(directory, internal, settings.token)),
        asyncio.create_task(ledger.run()),
    ]
    try:
        app = door(detections, ControlApi(settings, control), probes(directory, metrics))
        yield web.Service(app, access_log=settings.access_log)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_FLUSH_S):
                await ledger.flush()
        except (UpstreamError, TimeoutError) as error:
            telemetry.logger("gateway").error(
                "usage is lost: control does not take it", lost=len(ledger), reason=str(error)
            )
        detections.keep(set())
        control.close()
        internal.close()


async def run(settings: Settings, *, stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, finish what is in flight, hand over the usage."""
    telemetry.configure_logging("gateway")
    if settings.listen is None:
        listener = web.bind(host=settings.host, port=settings.port)
    else:
        listener = socket.socket(fileno=settings.listen)
    async with gateway(settings) as app:
        telemetry.logger("gateway").info("listening", address=listener.getsockname()[:2])
        await web.serve(app, listener, stop=stop, drain_s=settings.drain_s, tls=settings.tls)
