"""The runtime's REST surface: `POST /v1/detect`, and `/runtime/*` for whoever runs it."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from polyolo.errors import TooLargeError, UnauthenticatedError
from polyolo.sealedfile import KEY_HEADER
from polyolo.serving import params
from polyolo.serving.budget import Share
from polyolo.serving.form import PictureForm, is_form
from polyolo.serving.runtime import Reached, Request, Runtime, deadline, measured, metering
from polyolo.types import RuntimeSpec
from polyolo.web import decode_json, json_response, read_body

_FORM_OVERHEAD = 64 * 1024  # bytes of a form around its picture: boundaries, headers, small fields
_SPEC_BYTES = 8 * 1024 * 1024  # a spec of 100 models with 1000 class names each is half of it


def routes(runtime: Runtime, token: str = "") -> list[Route]:
    """Return the routes of the REST surface. token: what opens /runtime; empty: no need of one."""

    def check(request: HttpRequest) -> None:
        said = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
            raise UnauthenticatedError("this is for the control plane only")

    async def detect(request: HttpRequest) -> Response:
        return await measured(runtime, partial(_detect, runtime, request))

    async def put_spec(request: HttpRequest) -> Response:
        check(request)
        body = await read_body(request.receive, _SPEC_BYTES, request.headers.get("content-length"))
        spec = decode_json(body, RuntimeSpec)
        wait_s = params.read_timeout(request.headers.get("polyolo-timeout-ms"), 0.0)
        if key := request.headers.get(KEY_HEADER):
            runtime.unlock(key)
        runtime.repository.apply(spec)
        await runtime.repository.settled(spec.generation, wait_s)
        return json_response(runtime.repository.status(), 202)

    async def get_status(request: HttpRequest) -> Response:
        check(request)
        return json_response(runtime.repository.status())

    return [
        Route("/v1/detect", detect, methods=["POST"]),
        Route("/runtime/spec", put_spec, methods=["PUT"]),
        Route("/runtime/status", get_status, methods=["GET"]),
    ]


async def _detect(runtime: Runtime, request: HttpRequest, reached: Reached) -> Response:
    """Receive → model → (in the model's process) decode → letterbox → infer → boxes → encode."""
    headers = request.headers
    asked = Request(
        asked=params.read_query(request.scope["query_string"]),
        request_id=request.scope["state"]["request_id"],
        media_type=params.read_accept(headers.get("accept")),
        cold_start=headers.get("polyolo-cold-start") == "1",
    )
    timeout_s = params.read_timeout(headers.get("polyolo-timeout-ms"), runtime.timeout_s)
    async with deadline(timeout_s):
        with ExitStack() as held:
            share = Share(runtime.budget)
            held.callback(share.release)
            picture = await _picture(runtime, request, share)
            async with while_connected(request):
                found = await runtime.served(
                    asked.asked,
                    asked.request_id,
                    reached,
                    lambda lease: runtime.look(lease, picture, asked),
                )
    return Response(found.body, media_type=asked.media_type, headers=metering([found]))


async def _picture(runtime: Runtime, request: HttpRequest, share: Share) -> bytes:
    """Receive the body and return the encoded picture in it."""
    content_type = request.headers.get("content-type", "")
    limit = runtime.limits.max_bytes
    refusal = TooLargeError(f"a picture may have at most {limit:,} bytes")
    form: PictureForm | None = None
    if is_form(content_type):
        form = PictureForm(content_type, params.KNOWN)
        limit += _FORM_OVERHEAD
    chunks: list[bytes] = []
    async for chunk in received(request, share, limit, refusal):
        if form is not None:
            form.write(chunk)
        else:
            chunks.append(chunk)
    if form is not None:
        return form.picture()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def received(
    request: HttpRequest, share: Share, limit: int, refusal: TooLargeError
) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes, at most `limit` bytes, all of it held in `share`.

    Raises `refusal` for more, if the length is declared then at once; OverloadedError,
    ClientDisconnect.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise refusal
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            size += len(chunk)
            if size > limit:
                raise refusal
            share.grow(len(chunk))
            yield chunk
        more = message.get("more_body", False)


@asynccontextmanager
async def while_connected(request: HttpRequest) -> AsyncIterator[None]:
    """Abandon the block with ClientDisconnect as soon as the client hangs up.

    For a request whose body has been received: nothing else comes in after it.
    """
    task = asyncio.current_task()
    assert task is not None  # handlers run in tasks
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
