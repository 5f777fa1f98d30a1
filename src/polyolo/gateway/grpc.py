"""The door for gRPC, on the port behind HTTP's: passes calls on as bytes, messages unseen.

A call is let in by its metadata before its message is read, so that nobody without a credential
can fill the memory with messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc

from polyolo import rpc, telemetry, web
from polyolo.errors import (
    DeadlineExceededError,
    MalformedRequestError,
    MethodNotAllowedError,
    NotReadyError,
    PolyoloError,
    by_code,
)
from polyolo.gateway.delivery import deliver
from polyolo.gateway.endpoints import OutOfReachError
from polyolo.gateway.reception import Reception, Visit
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import address_of, networks
from polyolo.rpc import Context

_SERVICE = "inference.GRPCInferenceService"
_PASSED = ("traceparent", "tracestate")
"""Metadata of the client that goes on to the runtime; all else stays at the door, credentials
first of all."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # a runtime's answers are what its limits make them
    ("grpc.max_send_message_length", -1),  # bounded on its way in
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would inherit a dead one's back-off
    # A pod that is gone answers nothing at all: 2 s to connect, as for HTTP, in the place of 20.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What calls end with that a runtime had no part in: CANCELLED where it was just being stopped."""

_log = telemetry.logger("access")


class GrpcDoor:
    """The gRPC server of a gateway and its channels to runtimes. On the loop's thread."""

    def __init__(self, settings: Settings, directory: Directory, reception: Reception) -> None:
        self._settings = settings
        self._directory = directory
        self._reception = reception
        self._proxies = networks(settings.trusted_proxies)
        self._channels: dict[str, Any] = {}
        self._alone = False
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> Any:
        """Start to listen behind an HTTP port; return the server. Raises OSError."""
        server = rpc.server(
            (rpc.health(self._not_ready, [_SERVICE]), _Calls(self._answer)),
            max_bytes=self._settings.max_body_bytes,
            shared_port=True,  # a gateway that takes over listens beside the one that drains
        )
        host = f"[{host}]" if ":" in host else host
        target = web.rpc_target(f"http://{host}:{port}")
        await rpc.listen(server, target, self._settings.tls)
        self._alone = rpc.newest_first(port + 1)
        return server

    async def renewed(self, stop: asyncio.Event) -> None:
        """Wait until those who are connected have been asked to connect elsewhere, or `stop`."""
        if self._alone:  # else others go on connecting here
            with suppress(TimeoutError):
                async with asyncio.timeout(rpc.RENEWED_S * 1.2):
                    await stop.wait()

    async def _not_ready(self) -> str:
        return self._directory.distrust()

    async def _answer(self, method: str, _: Any, context: Context, request_id: str) -> bytes:
        """Serve one call and write its line in the access log. Raises what is to be answered."""
        started = time.perf_counter()
        fields: dict[str, Any] = {}
        status = PolyoloError.status
        try:
            answer = await self._pass_on(method, context, request_id, fields)
            status = 200
        except PolyoloError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = web.CLIENT_CLOSED_REQUEST
            raise
        finally:
            if self._settings.access_log:
                _log.info(
                    "request",
                    request_id=request_id,
                    method="gRPC",
                    path=method,
                    status=status,
                    ms=round((time.perf_counter() - started) * 1e3, 2),
                    **fields,
                )
        return answer

    async def _pass_on(
        self, method: str, context: Context, request_id: str, log: dict[str, Any]
    ) -> bytes:
        headers = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in context.invocation_metadata()
        ]
        peer = {"client": _peer(context), "headers": headers}
        source = address_of(peer, self._proxies)
        billed = method.endswith("/ModelInfer")
        left = context.time_remaining()
        async with self._reception.visit(
            headers, source, log, billed=billed, given_s=left
        ) as visit:
            context.set_trailing_metadata((("x-request-id", request_id), *visit.told.items()))
            message = await context.read()
            if not isinstance(message, bytes):
                raise MalformedRequestError("the call carries no message")
            visit.received = len(message)
            visit.hold(len(message))
            _, visit.cold = await self._directory.pick_endpoint(visit.tenant)
            metadata = [(n, v) for n, v in context.invocation_metadata() if n in _PASSED]
            metadata.append(("x-request-id", request_id))
            async with visit.turn:
                ask = partial(self._ask, visit, method, message, metadata)
                answer = await deliver(self._directory, visit, ask)
            visit.status = 200
        return answer

    async def _ask(
        self,
        visit: Visit,
        method: str,
        message: bytes,
        metadata: list[tuple[str, str]],
        endpoint: str,
    ) -> bytes:
        """Ask the runtime and note what it says for metering. Raises its error,
        OutOfReachError."""
        channel = self._channels.get(endpoint)
        if channel is None:
            target = web.rpc_target(endpoint)
            channel = self._channels[endpoint] = grpc.aio.insecure_channel(target, _OPTIONS)
        call = channel.unary_unary(method)(message, metadata=metadata, timeout=visit.left_s())
        try:
            answer: bytes = await call
        except grpc.aio.AioRpcError as error:
            visit.said = _ours(error.trailing_metadata())
            nobody = channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            failure = _translated(error, visit.said, begun=not nobody)
            if isinstance(failure, OutOfReachError):
                self._forget(endpoint)  # a new channel next time: this one would back off first
            raise failure from None
        visit.said = _ours(await call.trailing_metadata())
        return answer

    def _forget(self, endpoint: str) -> None:
        channel = self._channels.pop(endpoint, None)
        if channel is not None:
            task = asyncio.create_task(channel.close(self._settings.deadline_s))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def keep(self, endpoints: set[str]) -> None:
        """Close the channels to endpoints that are gone, once their calls are over."""
        for endpoint in self._channels.keys() - endpoints:
            self._forget(endpoint)


class _Calls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    """Takes every method of the inference service, whatever its messages are."""

    def __init__(self, answer: Callable[..., Awaitable[bytes]]) -> None:
        self._answer = answer

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; None for a service that is not known."""
        method: str = handler_call_details.method
        if not method.startswith(f"/{_SERVICE}/"):
            return None
        # On the wire a stream of one message is the same as one message; but it is read by the
        # handler, after it has looked at the metadata.
        return grpc.stream_unary_rpc_method_handler(rpc.answering(partial(self._answer, method)))


def _peer(context: Context) -> tuple[str, int] | None:
    """Return the other end's host and port, as ASGI names it; None where it has none.

    gRPC writes ipv4:127.0.0.1:5000 and ipv6:%5B::1%5D:5000 (its naming.md).
    """
    kind, _, rest = unquote(context.peer()).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _ours(trailing: Any) -> Mapping[bytes, bytes]:
    return {
        name.encode(): value.encode()
        for name, value in trailing or ()
        if name.startswith("polyolo-") and isinstance(value, str)
    }


def _translated(error: Any, said: Mapping[bytes, bytes], *, begun: bool) -> PolyoloError:
    """Return what a call's failure means: the runtime's own error, or one of the way to it."""
    code = said.get(rpc.ERROR.encode())
    if code is not None:
        return by_code(code.decode(), error.details())
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return MethodNotAllowedError("there is no such method")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError("the request took too long")
    if error.code() in _GONE:
        return OutOfReachError(begun=begun)
    # The library's own words may name paths of this machine.
    return NotReadyError("what should answer broke off; come again")
