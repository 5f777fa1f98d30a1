"""What KEDA asks a gateway: whether a tenant has anything to do, and how much.

KEDA asks any of the gateways, so each answers for all: their requests in flight are asked for over
the same port, at most once a second. Who holds the first request for a runtime that sleeps says so
at once, to every KEDA that listens here; the others hear of it from control or from their peers.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import grpc
import msgspec

from polyolo import rpc, telemetry
from polyolo.errors import InvalidValueError
from polyolo.gateway import externalscaler_pb2 as messages
from polyolo.gateway.activity import Activity
from polyolo.gateway.routing import Directory
from polyolo.types import Phase, TenantState

METRIC = "requests-in-flight"
_SERVICE = "externalscaler.ExternalScaler"
_PEERS = "polyolo.Gateways"
_FRESH_S = 1.0  # for which what the others said is good
_ANSWER_S = 0.5  # for one of them; who does not answer counts as idle
_BYTES = 64 * 1024  # of a question; KEDA's metadata is a few hundred
_IDLE = {Phase.ABSENT, Phase.ASLEEP}

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(dict[str, int]).decode
_log = telemetry.logger("scaler")


class Scaler:
    """Answers KEDA. On the loop's thread."""

    def __init__(
        self, directory: Directory, activity: Activity, peers: Peers | None = None
    ) -> None:
        """Answer from what the directory knows and what is in flight, here and at the peers."""
        self._directory = directory
        self._activity = activity
        self._peers = peers
        self._elsewhere: dict[str, int] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._news: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        activity.listen(self.note)

    def note(self, tenants: Iterable[str]) -> None:
        """Tell who listens that these tenants may be needed now, or no longer."""
        for tenant in tenants:
            for event in self._news.get(tenant, ()):
                event.set()

    def active(self, tenant: str) -> bool:
        """Say whether a runtime is needed: a request is there, or control keeps it awake."""
        route = self._directory.tenants.get(tenant)
        if route is None or route.state is not TenantState.ACTIVE:
            return False
        return route.phase not in _IDLE or self._load(tenant) > 0

    def _load(self, tenant: str) -> int:
        return self._activity.in_flight(tenant) + self._elsewhere.get(tenant, 0)

    async def _ask_others(self) -> None:
        """Have what the other gateways said not older than a second."""
        if self._peers is None:
            return
        loop = asyncio.get_running_loop()
        if self._asking is None and loop.time() - self._asked_at >= _FRESH_S:
            self._asking = loop.create_task(self._renew(self._peers))
        if self._asking is not None:
            await asyncio.shield(self._asking)  # one that hangs up ends it for nobody else

    async def _renew(self, peers: Peers) -> None:
        try:
            self._elsewhere = await peers.in_flight()
            self._asked_at = asyncio.get_running_loop().time()
        finally:
            self._asking = None

    async def is_active(self, request: Any, _: rpc.Context, __: str) -> Any:
        """Answer IsActive."""
        tenant = _tenant(request)
        await self._ask_others()
        return messages.IsActiveResponse(result=self.active(tenant))

    async def stream(self, request: Any, context: rpc.Context) -> AsyncIterator[Any]:
        """Answer StreamIsActive: now, and whenever it changes."""
        tenant = request.scalerMetadata.get("tenant", "")
        if not tenant:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _MISSING)
        news = asyncio.Event()
        self._news[tenant].add(news)
        try:
            told: bool | None = None
            while True:
                news.clear()
                # Our own word first: asking the others takes time that a held request has not.
                now = self.active(tenant)
                if not now:
                    await self._ask_others()
                    now = self.active(tenant)
                if now is not told:
                    told = now
                    yield messages.IsActiveResponse(result=now)
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if told else _FRESH_S):
                        await news.wait()
        finally:
            self._news[tenant].discard(news)
            if not self._news[tenant]:
                del self._news[tenant]

    async def metric_spec(self, request: Any, _: rpc.Context, __: str) -> Any:
        """Answer GetMetricSpec."""
        _tenant(request)
        written = request.scalerMetadata.get("target", "4")
        try:
            target = float(written)
        except ValueError:
            target = 0.0
        if not 0 < target < float("inf"):
            raise InvalidValueError(f"the trigger's target is a number above 0, not {written!r}")
        spec = messages.MetricSpec(
            metricName=METRIC, targetSize=max(1, round(target)), targetSizeFloat=target
        )
        return messages.GetMetricSpecResponse(metricSpecs=[spec])

    async def metrics(self, request: Any, _: rpc.Context, __: str) -> Any:
        """Answer GetMetrics."""
        tenant = _tenant(request.scaledObjectRef)
        await self._ask_others()
        load = self._load(tenant)
        value = messages.MetricValue(
            metricName=request.metricName or METRIC, metricValue=load, metricValueFloat=load
        )
        return messages.GetMetricsResponse(metricValues=[value])

    async def own(self, _: Any, __: rpc.Context, ___: str) -> bytes:
        """Answer another gateway: what is in flight here."""
        return _encode(self._activity.all_in_flight())

    def handlers(self) -> tuple[Any, ...]:
        """Return the handlers for a gRPC server."""

        def unary(handle: rpc.Handle, question: Any, answer: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                rpc.answering(handle),
                request_deserializer=question.FromString,
                response_serializer=answer.SerializeToString,
            )

        reference = messages.ScaledObjectRef
        keda = {
            "IsActive": unary(self.is_active, reference, messages.IsActiveResponse),
            "StreamIsActive": grpc.unary_stream_rpc_method_handler(
                self.stream,
                request_deserializer=reference.FromString,
                response_serializer=messages.IsActiveResponse.SerializeToString,
            ),
            "GetMetricSpec": unary(self.metric_spec, reference, messages.GetMetricSpecResponse),
            "GetMetrics": unary(
                self.metrics, messages.GetMetricsRequest, messages.GetMetricsResponse
            ),
        }
        peers = {"InFlight": grpc.unary_unary_rpc_method_handler(rpc.answering(self.own))}
        return (
            grpc.method_handlers_generic_handler(_SERVICE, keda),
            grpc.method_handlers_generic_handler(_PEERS, peers),
        )

    async def open(self, target: str) -> Any:
        """Listen on `host:port` and return the server. Raises OSError."""
        server = rpc.server(self.handlers(), max_bytes=_BYTES)
        await rpc.listen(server, target)
        return server


class Peers:
    """The other gateways, by the addresses behind one name. On the loop's thread."""

    def __init__(self, name: str) -> None:
        """Ask those whose addresses `name` (HOST:PORT, of a headless service) has."""
        self._host, _, self._port = name.rpartition(":")
        self._channels: dict[str, Any] = {}
        self._own = {str(info[4][0]) for info in _addresses(socket.gethostname())}

    async def in_flight(self) -> dict[str, int]:
        """Return what each tenant has in flight at all of them together."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._host.strip("[]"), int(self._port), type=socket.SOCK_STREAM
            )
        except OSError as error:
            _log.warning("the other gateways cannot be found", error=str(error))
            return {}
        addresses = {str(info[4][0]) for info in found} - self._own
        for address in self._channels.keys() - addresses:
            await self._channels.pop(address).close()
        told = await asyncio.gather(*(self._ask(address) for address in addresses))
        total: defaultdict[str, int] = defaultdict(int)
        for one in told:
            for tenant, count in one.items():
                total[tenant] += count
        return dict(total)

    async def _ask(self, address: str) -> dict[str, int]:
        channel = self._channels.get(address)
        if channel is None:
            host = f"[{address}]" if ":" in address else address
            channel = self._channels[address] = grpc.aio.insecure_channel(f"{host}:{self._port}")
        try:
            return _decode(await channel.unary_unary(f"/{_PEERS}/InFlight")(b"", timeout=_ANSWER_S))
        except (grpc.aio.AioRpcError, msgspec.DecodeError) as error:
            _log.warning("another gateway does not answer", address=address, error=type(error))
            return {}

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()


_MISSING = "the trigger's metadata names no tenant"


def _tenant(reference: Any) -> str:
    tenant: str = reference.scalerMetadata.get("tenant", "")
    if not tenant:
        raise InvalidValueError(_MISSING)
    return tenant


def _addresses(host: str) -> list[Any]:
    try:
        return socket.getaddrinfo(host, None)
    except OSError:
        return []
