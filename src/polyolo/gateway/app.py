"""Puts the gateway together: `Reception.visit` and `Detections` read as a request's path."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
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
from polyolo.gateway import newest, routing, waking
from polyolo.gateway.activity import Activity
from polyolo.gateway.connections import Connections, room
from polyolo.gateway.delivery import deliver
from polyolo.gateway.grpc import GrpcDoor
from polyolo.gateway.headers import for_control, for_runtime
from polyolo.gateway.inbound import Leash, Pace
from polyolo.gateway.limits import Bound
from polyolo.gateway.proxy import Exchange
from polyolo.gateway.quotas import Quotas
from polyolo.gateway.rates import Rates
from polyolo.gateway.reception import Reception, Visit
from polyolo.gateway.routing import Directory, Swap
from polyolo.gateway.scaler import Peers, Scaler
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import address_of, networks
from polyolo.gateway.turns import Turn, Turns
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.gateway.usage import Ledger, Meter

_TO_CONTROL = ("/api", "/oauth2", "/openapi.json", "/docs", "/.well-known")
_OWN = ("/livez", "/readyz", "/metrics")
_FIRST_S = 5.0  # for the first snapshot; after that the door opens, if only to say what is wrong
_LAST_FLUSH_S = 5.0  # for handing over usage when the process ends


class Detections:
    """Serves /v1/detect and /v2: take in, wait for a turn, pick the endpoint, forward."""

    def __init__(self, settings: Settings, directory: Directory, reception: Reception) -> None:
        self._settings = settings
        self._directory = directory
        self._reception = reception
        self._proxies = networks(settings.trusted_proxies)
        self._upstreams: dict[str, Upstream] = {}

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request. Raises what is to be answered."""
        settings, scope, inbound = self._settings, exchange.scope, exchange.inbound
        log = scope["state"]["log"]
        source = address_of(scope, self._proxies)
        async with self._reception.visit(
            scope["headers"], source, log, billed=_is_metered(scope)
        ) as visit:
            try:
                inbound.bound(settings.max_body_bytes)
                exchange.added = visit.told
                if inbound.length is None:
                    inbound.hold = visit.hold
                else:
                    await visit.reserve(inbound.length)
                await exchange.take_in(visit.leash)
                _, visit.cold = await self._directory.pick_endpoint(visit.tenant)
                async with visit.turn as turn:
                    log["waited_ms"] = round(turn.waited_s * 1e3, 2)
                    forward = partial(self._forward, exchange, visit, turn)
                    await deliver(self._directory, visit, forward)
            finally:
                visit.status, visit.said = exchange.status, exchange.ours
                visit.received = inbound.received

    async def _forward(self, exchange: Exchange, visit: Visit, turn: Turn, endpoint: str) -> None:
        headers = for_runtime(exchange.scope, cold_start=visit.cold, left_s=visit.left_s())
        upstream = self._upstream(endpoint)
        await exchange.forward(visit.leash, upstream, headers, repeatable=True, on_head=turn.end)

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

    def __init__(self, settings: Settings, control: Upstream, reception: Reception) -> None:
        self._settings = settings
        self._control = control
        self._reception = reception
        self._proxies = networks(settings.trusted_proxies)
        self._inside = Bound()

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request. Raises what is to be answered."""
        settings, source = self._settings, address_of(exchange.scope, self._proxies)
        whose = self._reception.tenant_of(exchange.scope["headers"]) or str(source)
        full = OverloadedError("too many calls at once from here; come again shortly")
        with (
            self._inside.admit(whose, settings.control_share, full),
            Leash(settings.control_deadline_s) as leash,
        ):
            await exchange.take_in(leash, settings.whole_body_bytes)
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
    pace = Pace()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path: str = scope["path"]
        exchange = Exchange(scope, receive, send)
        try:
            if not _means_the_same_everywhere(path):
                raise NotFoundError("there is nothing at this path")
            if path == "/v1/detect" and scope["method"] != "POST":
                raise MethodNotAllowedError("send the picture with POST")
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
        await exchange.finish(pace)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway at work, not listening yet."""

    http: ASGIApp
    grpc: GrpcDoor
    directory: Directory
    leave: Callable[[], None]
    """Counts this gateway no longer: it takes nothing more in, its share is for the others."""
    scaler: Scaler | None = None


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Build a gateway, keep its snapshot fresh and its usage flowing while the context lasts."""
    metrics, rates = telemetry.Metrics(), Rates(settings.redis)
    # Not kept: none is to be in use while control closes what is idle, and becomes another one.
    control = Upstream(settings.control, limit=settings.control_connections, keep=False)
    # Its own, so that public calls cannot crowd it out.
    internal = Upstream(settings.control, keep=False)
    quotas = Quotas()
    ledger = Ledger(settings, internal, metrics, quotas)
    meter = Meter(ledger, metrics)
    turns = Turns(settings.slots, meter)

    def swapped(directory: Directory, swap: Swap) -> None:
        routes = directory.tenants
        rates.share(directory.gateways)
        if settings.succeeds is None:
            rates.carry(routes.values())
        if scaler is not None:
            scaler.note(swap.changed)
        if not swap.lost:
            return
        endpoints = {e for route in routes.values() for e in route.endpoints}
        detections.keep(endpoints)
        calls.keep(endpoints)
        meter.keep({route.name for route in routes.values()})
        turns.keep(set(routes))
        quotas.keep(set(routes))

    wake = partial(waking.wake, internal, settings.token)
    ask = partial(newest.ask, internal, settings.token)
    directory = Directory(settings, wake=wake, newest=ask, on_swap=swapped)
    activity = Activity()
    reception = Reception(
        settings, directory, meter, rates=rates, quotas=quotas, turns=turns, activity=activity
    )
    detections = Detections(settings, directory, reception)
    calls = GrpcDoor(settings, directory, reception)
    peers = Peers(settings.scaler_peers) if settings.scaler_peers else None
    scaler = Scaler(directory, activity, peers) if settings.scaler else None
    own = telemetry.new_id()[:12]
    name = f"{settings.door or own}.{own}"  # control waits for each, and counts the doors
    tasks = [
        asyncio.create_task(routing.pull(directory, internal, settings.token, name)),
        asyncio.create_task(ledger.run()),
        asyncio.create_task(activity.run(internal, settings.token)),
    ]

    def leave() -> None:
        tasks[0].cancel()  # what is in flight may wait for news still
        tasks.append(asyncio.create_task(routing.pull(directory, internal, settings.token)))

    try:
        app = door(detections, ControlApi(settings, control, reception), probes(directory, metrics))
        service = web.Service(app, access_log=settings.access_log)
        yield Gateway(http=service, grpc=calls, directory=directory, leave=leave, scaler=scaler)
    finally:
        directory.close()
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
        calls.keep(set())
        control.close()
        internal.close()
        await rates.close()
        if peers is not None:
            await peers.close()


async def run(settings: Settings, *, stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, take leave, finish what is in flight, hand over the
    usage.

    After SIGUSR2 it is for another one to serve who comes: this one takes no new connections, and
    ends when those that it has are over. Raises OSError for an address that is taken,
    NotReadyError when it cannot take over from another one.
    """
    telemetry.configure_logging("gateway")
    if settings.listen is None:
        listener = web.bind(host=settings.host, port=settings.port)
    else:
        listener = socket.socket(fileno=settings.listen)
    host, port = listener.getsockname()[:2]
    retire = web.signalled(signal.SIGUSR2) if stop is None else asyncio.Event()
    leave, stop = stop or web.signalled(), asyncio.Event()
    connections = Connections(room())
    sweeping = asyncio.create_task(connections.sweep())
    async with gateway(settings) as doors:
        # Those who come meanwhile wait in the door: a second without anybody is no refusal.
        await doors.directory.informed(_FIRST_S)
        if settings.succeeds is not None and (why := doors.directory.distrust()):
            raise NotReadyError(why)  # the other one still serves
        servers = [await doors.grpc.open(host, port)]
        if doors.scaler is not None and settings.scaler is not None:
            servers.append(await doors.scaler.open(settings.scaler))
        if settings.succeeds is not None:
            os.write(settings.succeeds, b"\n")
            os.close(settings.succeeds)
        telemetry.logger("gateway").info("listening", address=(host, port), grpc_port=port + 1)

        async def take_leave() -> None:
            await leave.wait()
            await asyncio.sleep(settings.leave_s)
            stop.set()

        async def drain() -> None:
            waiting = {asyncio.create_task(event.wait()) for event in (stop, retire)}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
            if not stop.is_set():
                await doors.grpc.renewed(stop)
            door, *others = servers
            await asyncio.gather(door.stop(settings.drain_s), *(one.stop(0) for one in others))

        serving = web.serve(
            doors.http,
            listener,
            stop=stop,
            leave=leave,
            drain_s=settings.drain_s,
            retire=retire,
            tls=settings.tls,
            protocol=connections.protocol,
            draining=doors.leave,
        )
        leaving = asyncio.create_task(take_leave())
        await asyncio.gather(serving, drain())
        leaving.cancel()
    sweeping.cancel()
