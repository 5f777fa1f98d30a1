"""What every HTTP process shares: answers, errors as problem documents, probes, serving, dying.

`Service` is the outermost layer of each process, plain ASGI: it gives a request its id, turns a
raised error into its problem document and writes the access log's line. Inside it, a handler
only returns an answer or raises an error of `polyolo.errors`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyolo import telemetry
from polyolo.errors import (
    MalformedRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PolyoloError,
    TooLargeError,
)
from polyolo.tls import HSTS, Tls

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that hung up; never sent, only counted

_LOOK_S = 0.1
"""Between two looks whether all connections are over."""

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode

Probe = Callable[[], Awaitable[str]]
"""Says why the process is not well, in a sentence; an empty string when it is."""


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `content` (dataclasses, dicts, lists) as a JSON answer."""
    return Response(_encode(content), status, headers, media_type="application/json")


def problem_response(error: PolyoloError, path: str = "") -> Response:
    """Return the answer for an error: an RFC 9457 document, and below /v2 what the Open Inference
    Protocol wants in its place. path: the request's."""
    if path == "/v2" or path.startswith("/v2/"):
        return json_response({"error": error.detail}, error.status, error.headers())
    return Response(
        _encode(error.problem(path)),
        error.status,
        error.headers(),
        media_type="application/problem+json",
    )


async def read_body(receive: Receive, limit: int, declared: str | None = None) -> bytes:
    """Read a request's body into memory, refusing more than `limit` bytes.

    declared: the Content-Length header, judged before the first byte is read. Raises
    TooLargeError, and ClientDisconnect when the client hangs up.
    """
    too_large = TooLargeError(f"the body is larger than the {limit:,} bytes allowed here")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise too_large
    body = BytesIO()  # one block that grows: hundreds of small ones would leave holes in the heap
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large
        if size == len(chunk) and not message.get("more_body", False):
            return chunk
        body.write(chunk)
        if not message.get("more_body", False):
            return body.getvalue()


def decode_json(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as `kind`; MalformedRequestError says what does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedRequestError(f"the body is not what belongs here: {error}") from None
    except RecursionError:
        raise MalformedRequestError("the body nests too deep") from None


def as_polyolo_error(error: Exception) -> PolyoloError | None:
    """Return the error of ours that a framework's HTTPException stands for; None for others."""
    if isinstance(error, PolyoloError):
        return error
    if isinstance(error, HTTPException):
        kinds = {404: NotFoundError, 405: MethodNotAllowedError, 413: TooLargeError}
        details = {404: "there is nothing at this path", 405: "this path has other methods"}
        kind = kinds.get(error.status_code, MalformedRequestError)
        return kind(details.get(error.status_code, str(error.detail)))
    return None


class Service:
    """The outermost layer of a process: request id, errors, access log.

    A handler may add fields to the log line through `scope["state"]["log"]` (a dict) and reads
    the id at `scope["state"]["request_id"]`.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool) -> None:
        self._app = app
        self._log = telemetry.logger("access") if access_log else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        offered = next((v for k, v in scope["headers"] if k == b"x-request-id"), None)
        request_id = telemetry.request_id(offered)
        fields: dict[str, Any] = {}
        scope["state"] = {"request_id": request_id, "log": fields}
        scope.setdefault("app", self)  # makes starlette's router raise instead of answering text
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [h for h in message["headers"] if h[0] != b"x-request-id"]
                headers.append((b"x-request-id", request_id.encode()))
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:  # noqa: BLE001  # the last line: whatever it was, it is answered
            known = as_polyolo_error(error)
            if known is None:
                telemetry.logger("web").exception("unexpected error", request_id=request_id)
                known = PolyoloError(
                    "something went wrong here; the request id names it in our log"
                )
            if not status:
                await problem_response(known, scope["path"])(scope, receive, send_with_id)
            del known  # its traceback holds this frame: a cycle that would keep the request's body
        finally:
            if self._log is not None:
                self._log.info(
                    "request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status or CLIENT_CLOSED_REQUEST,
                    ms=round((time.perf_counter() - started) * 1e3, 2),
                    **fields,
                )


def probes(*, live: Probe, ready: Probe, registry: CollectorRegistry) -> list[Route]:
    """Return the routes /livez, /readyz and /metrics."""

    def probe(check: Probe) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            reason = await check()
            return json_response({"status": reason or "ok"}, 503 if reason else 200)

        return answer

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return [
        Route("/livez", probe(live)),
        Route("/readyz", probe(ready)),
        Route("/metrics", metrics),
    ]


def bind(*, host: str = "", port: int = 0, path: Path | None = None) -> socket.socket:
    """Return a listening socket: a Unix socket at `path` (mode 0600), else TCP.

    Raises OSError with a sentence that says what to change.
    """
    if path is not None:
        if len(os.fsencode(path)) > 107:  # sun_path holds 108 bytes with its closing zero
            raise OSError(
                f"the socket's path is longer than 107 bytes, choose a shorter one: {path}"
            )
        path.unlink(missing_ok=True)  # left behind by a process that was killed
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o600)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def rpc_target(endpoint: str) -> str:
    """Return where the process at an HTTP endpoint speaks gRPC, as gRPC names it.

    unix:/x/runtime.sock → unix:/x/grpc.sock, http://host:port → host:port+1. Raises OSError for
    the last port, which has none behind it.
    """
    if endpoint.startswith("unix:"):
        return endpoint.rpartition("/")[0] + "/grpc.sock"
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    if int(port) >= 65535:
        raise OSError(f"port {port} leaves none behind it for gRPC; choose a lower one")
    return f"{host}:{int(port) + 1}"


def reserve(host: str, port: int) -> socket.socket:
    """Take a port without listening on it: processes of this user may listen there, others not.

    Raises OSError with a sentence that says what to change.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except (OSError, OverflowError) as error:
        held.close()
        reason = error.strerror if isinstance(error, OSError) else "there is no such port"
        raise OSError(f"cannot take {host} port {port} for gRPC: {reason}") from None
    return held


def signalled(*numbers: signal.Signals) -> asyncio.Event:
    """Return an event that these signals set from now on; SIGTERM and SIGINT when none is named."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in numbers or (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to `serve`, so that a drained process exits with 0."""

    def __init__(self, config: uvicorn.Config, draining: Callable[[], None]) -> None:
        super().__init__(config)
        self._draining = draining

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._draining()  # uvicorn itself looks for its end ten times a second
        await super().shutdown(sockets)


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    stop: asyncio.Event | None = None,
    drain_s: float = 30.0,
    leave: asyncio.Event | None = None,
    retire: asyncio.Event | None = None,
    tls: Tls | None = None,
    protocol: Callable[..., asyncio.Protocol] | None = None,
    draining: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` until `stop`, then finish what is in flight, and return.

    stop: SIGTERM or SIGINT when None. drain_s: seconds that requests in flight are given. leave:
    set a while before `stop`: from then on each connection is told with its next answer to make
    another one, so that none is closed while its client may be about to send a request. retire:
    set when somebody else listens on the same socket: the same, and no new connections are taken;
    when all have ended, that is a stop. tls: None for plain HTTP; else plain HTTP gets no answer,
    the connection is closed. protocol: makes each connection's, in the place of uvicorn's for
    httptools. draining: called when nothing more is taken in, and what is in flight goes on.
    """
    config = uvicorn.Config(
        app,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        headers=[HSTS] if tls else None,
        http=protocol or "httptools",  # type: ignore[arg-type]  # it only calls it
        loop="none",  # the caller runs the loop
        ws="none",
        proxy_headers=False,  # nobody's word on where a request came from is believed
        lifespan="off",  # composition roots build and close what they need themselves
        log_config=None,
        access_log=False,
        server_header=False,
        # Longer than any pooling client of ours keeps an idle connection, so that the client is
        # the one to close it and never sends a request into a closing connection.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(drain_s),
    )
    if tls is not None:
        config.load()
        assert config.ssl is not None
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = _Server(config, draining)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    waiting = asyncio.create_task((stop or signalled()).wait())
    leaving = asyncio.create_task(_asked_to_go(server, leave or asyncio.Event()))
    retiring = asyncio.create_task(_retired(server, listener, retire or asyncio.Event()))
    await asyncio.wait({serving, waiting, retiring}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, leaving, retiring):
        task.cancel()
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving


async def _asked_to_go(server: uvicorn.Server, leave: asyncio.Event) -> None:
    """Wait for the event, and have each answer from then on end its connection."""
    await leave.wait()
    farewell = [(b"connection", b"close")]
    server.config.encoded_headers += farewell  # what the server makes its headers of each second
    server.server_state.default_headers = [*server.server_state.default_headers, *farewell]


async def _retired(server: uvicorn.Server, listener: socket.socket, retire: asyncio.Event) -> None:
    """Wait for the event, then take no new connections, and return once none is left."""
    await retire.wait()
    while not server.started:  # noqa: ASYNC110  # the server tells nobody
        await asyncio.sleep(_LOOK_S)
    for listening in server.servers:
        listening.close()
    listener.close()
    await _asked_to_go(server, retire)
    while server.server_state.connections:  # noqa: ASYNC110  # neither
        await asyncio.sleep(_LOOK_S)
