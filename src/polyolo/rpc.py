"""What every gRPC process shares: errors as statuses, health, and how a server starts.

Importing it costs about 15 MB and 20 ms: only modules that speak gRPC do.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from polyolo import telemetry
from polyolo.errors import NotFoundError, PolyoloError
from polyolo.tls import Tls
from polyolo.web import Probe

Context = Any
"""grpc.aio.ServicerContext; grpcio ships no types."""

_CHOOSE = 51  # SO_ATTACH_REUSEPORT_CBPF of asm-generic/socket.h
_RETURN = 0x06  # BPF_RET | BPF_K of linux/bpf_common.h

Handle = Callable[[Any, Context, str], Awaitable[Any]]
"""Answers a call: request (or an iterator of messages), context, request id."""

RENEWED_S = 60.0
"""Age at which a server on a shared port asks for another connection; the library takes a tenth
more or less."""

HEALTH = "grpc.health.v1.Health"

ERROR = "polyolo-error"
"""Trailing metadata that names the error (its code in polyolo.errors) which ended a call. A call
that ended without it was not ended by us, but by the connection or the library."""


def request_id(context: Context) -> str:
    """Return the id that the caller gave the call, else a new one."""
    for name, value in context.invocation_metadata():
        if name == "x-request-id" and isinstance(value, str):
            return telemetry.request_id(value.encode())
    return telemetry.new_id()


def answering(handle: Handle) -> Callable[[Any, Context], Awaitable[Any]]:
    """Return a method for a server: `handle`, whose errors end the call with their status."""

    async def method(request: Any, context: Context) -> Any:
        id_ = request_id(context)
        context.set_trailing_metadata((("x-request-id", id_),))
        try:
            return await handle(request, context, id_)
        except PolyoloError as error:
            known = error.with_traceback(None)
        except Exception:  # noqa: BLE001  # the last line: whatever it was, it is answered
            telemetry.logger("rpc").exception("unexpected error", request_id=id_)
            known = PolyoloError("something went wrong here; the request id names it in our log")
        return await context.abort(
            grpc.StatusCode[known.grpc],
            known.detail,
            (("x-request-id", id_), (ERROR, known.code), *known.headers().items()),
        )

    return method


def health(ready: Probe, services: Iterable[str]) -> Any:
    """Return the handler of the health service, which asks for no credential.

    ready: why the process is not; empty when it is. services: names that are asked for, beside
    the empty one. Watch is not implemented, which the protocol allows.
    """
    known = {"", *services}

    async def check(request: Any, _: Context, __: str) -> Any:
        if request.service not in known:
            raise NotFoundError("there is no such service here")
        status = health_pb2.HealthCheckResponse
        return status(status=status.NOT_SERVING if await ready() else status.SERVING)

    return grpc.method_handlers_generic_handler(
        HEALTH,
        {
            "Check": grpc.unary_unary_rpc_method_handler(
                answering(check),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            )
        },
    )


def server(handlers: Iterable[Any], *, max_bytes: int, shared_port: bool = False) -> Any:
    """Return a server (grpc.aio.Server) that does not listen yet.

    max_bytes: largest message that it takes. shared_port: other processes of this user may listen
    on its port too, and connections are renewed every minute, so that one that takes over gets
    them without a call lost; a server that is stopped refuses calls that are on their way.
    """
    made = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shared_port)),
            *((("grpc.max_connection_age_ms", int(RENEWED_S * 1000)),) if shared_port else ()),
        )
    )
    made.add_generic_rpc_handlers(tuple(handlers))
    return made


def newest_first(port: int) -> bool:
    """Have new connections to a port that two processes listen on come to the later one only.

    Where this process is that one, or alone, or will be the earlier. Returns whether the kernel
    does that (Linux); without, either gets some of them.
    """
    told = False
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError), closing(_socket(int(entry.name))) as listener:
            if listener.getsockname()[1] == port and listener.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                # It chooses by number, from 0. Where there is no second, all go to the first.
                choice = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, 1))
                program = struct.pack("@HP", 1, ctypes.addressof(choice))
                listener.setsockopt(socket.SOL_SOCKET, _CHOOSE, program)
                told = True
    return told


def _socket(descriptor: int) -> socket.socket:
    """Return a socket by another descriptor. Raises OSError for anything else."""
    copy = os.dup(descriptor)
    try:
        made = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    if made.family not in (socket.AF_INET, socket.AF_INET6):
        made.close()
        raise OSError("not of the internet")
    return made


async def listen(server: Any, target: str, tls: Tls | None = None) -> None:
    """Start a server. target: as `web.rpc_target` gives it. tls: what it speaks TLS with, if it
    does. Raises OSError with a sentence that says what to change."""
    try:
        if tls is None:
            server.add_insecure_port(target)
        else:
            pair = tls.key.read_bytes(), tls.certificate.read_bytes()
            server.add_secure_port(target, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise OSError(f"cannot listen on {target} for gRPC; is it taken?") from None
    await server.start()
    if target.startswith("unix:"):
        os.chmod(target.removeprefix("unix:"), 0o600)  # noqa: PTH101  # nothing to wait for
