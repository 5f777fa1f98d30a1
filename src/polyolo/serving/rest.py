"""The runtime's REST surface: `POST /v1/detect`, and `/runtime/*` for whoever runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from polyolo.errors import PolyoloError, TooLargeError
from polyolo.serving import params
from polyolo.serving.budget import Share
from polyolo.serving.form import PictureForm, is_form
from polyolo.serving.runtime import Request, Runtime, deadline
from polyolo.serving.wire import Answer
from polyolo.types import ModelRef, RuntimeSpec
from polyolo.web import CLIENT_CLOSED_REQUEST, decode_json, json_response, read_body

_FORM_OVERHEAD = 64 * 1024  # bytes of a form around its picture: boundaries, headers, small fields
_SPEC_BYTES = 8 * 1024 * 1024  # a spec of 100 models with 1000 class names each is half of it


def routes(runtime: Runtime) -> list[Route]:
    """Return the routes of the REST surface."""

    async def detect(request: HttpRequest) -> Response:
        return await _measured(runtime, request, _detect)

    async def put_spec(request: HttpRequest) -> Response:
        body = await read_body(request.receive, _SPEC_BYTES, request.headers.get("content-length"))
        runtime.repository.apply(decode_json(body, RuntimeSpec))
        return json_response(runtime.repository.status(), 202)

    async def get_status(_: HttpRequest) -> Response:
        return json_response(runtime.repository.status())

    return [
        Route("/v1/detect", detect, methods=["POST"]),
        Route("/runtime/spec", put_spec, methods=["PUT"]),
        Route("/runtime/status", get_status, methods=["GET"]),
    ]


async def _measured(
    runtime: Runtime,
    request: HttpRequest,
    handle: Callable[[Runtime, HttpRequest], Awaitable[Response]],
) -> Response:
    """Count a request and its time by the model that it reached, none where it reached none."""
    started = time.perf_counter()
    code = PolyoloError.status
    try:
        response = await handle(runtime, request)
        code = response.status_code
    except PolyoloError as error:
        code = error.status
        # The frames it came through hold the picture; whoever handles the error must not.
        error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904  # the same error, lighter
    except ClientDisconnect:
        code = CLIENT_CLOSED_REQUEST
        raise
    finally:
        model = request.scope["state"]["log"].get("model", "")
        runtime.metrics.requests.labels(runtime.tenant, model, str(code)).inc()
        seconds = time.perf_counter() - started
        runtime.metrics.request_duration.labels(runtime.tenant, model).observe(seconds)
    return response


async def _detect(runtime: Runtime, request: HttpRequest) -> Response:
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
            async with _while_connected(request):
                lease = await runtime.lease(asked.asked)
                held.callback(lease.release)
                request.scope["state"]["log"]["model"] = lease.model.ref.name
                found = await runtime.look(lease, picture, asked)
    return Response(
        found.body, media_type=asked.media_type, headers=metering(found.ref, [found.answer])
    )


def metering(ref: ModelRef, answers: Sequence[Answer]) -> dict[str, str]:
    """Return the headers by which the gateway meters a request."""
    engine_ms = sum(answer.timing.inference for answer in answers if answer.timing is not None)
    return {
        "polyolo-model": str(ref),
        "polyolo-images": str(len(answers)),
        "polyolo-engine-ms": f"{engine_ms:.2f}",
    }


async def _picture(runtime: Runtime, request: HttpRequest, share: Share) -> bytes:
    """Receive the body and return the encoded picture in it."""
    content_type = request.headers.get("content-type", "")
    limit = runtime.limits.max_bytes
    form: PictureForm | None = None
    if is_form(content_type):
        form = PictureForm(content_type, params.KNOWN)
        limit += _FORM_OVERHEAD
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(runtime)
    chunks: list[bytes] = []
    size = 0
    async for chunk in _chunks(request):
        size += len(chunk)
        if size > limit:
            raise _too_large(runtime)
        share.grow(len(chunk))
        if form is not None:
            form.write(chunk)
        else:
            chunks.append(chunk)
    if form is not None:
        return form.picture()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(runtime: Runtime) -> TooLargeError:
    return TooLargeError(f"a picture may have at most {runtime.limits.max_bytes:,} bytes")


async def _chunks(request: HttpRequest) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            yield chunk
        more = message.get("more_body", False)


@asynccontextmanager
async def _while_connected(request: HttpRequest) -> AsyncIterator[None]:
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
