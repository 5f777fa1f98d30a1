"""The Open Inference Protocol v2 by REST, with the binary tensor extension, under /v2.

In JSON an element of the input is the picture in base64: no encoded picture is text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from polyolo.errors import (
    InvalidValueError,
    MalformedRequestError,
    NotReadyError,
    TooLargeError,
    UnsupportedImageError,
)
from polyolo.serving import inference, params
from polyolo.serving.budget import Share
from polyolo.serving.inference import Output, Question
from polyolo.serving.rest import received, while_connected
from polyolo.serving.runtime import Reached, Runtime, deadline, measured, metering
from polyolo.types import ModelRef
from polyolo.web import decode_json, json_response

OVERHEAD = 1024 * 1024
"""Bytes of a request around its pictures; with the largest picture, what the gateway lets in."""

_MOST_COMMAS = 4096
"""In a request's JSON: base64 has none, and a request with 64 pictures some hundred. Without this
bound 21 MB of tiny values would become hundreds of MB of objects."""
_HEADER_LENGTH = "inference-header-content-length"
_PARAMETER = "binary_data_output"  # of a request: the default of its outputs' binary_data

Parameters = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = field(default_factory=dict)
    data: list[str | list[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    inputs: list[_Input]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    outputs: list[_Output] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inference:
    question: Question
    id: str | None
    binary: Mapping[str, bool]
    """By output: whether it goes as binary data."""


def routes(runtime: Runtime) -> list[Route]:
    """Return the routes of the protocol."""

    async def server(_: HttpRequest) -> Response:
        return json_response(inference.ServerMetadata())

    async def live(_: HttpRequest) -> Response:
        return json_response({"live": True})

    async def ready(_: HttpRequest) -> Response:
        return _ready(runtime.repository.not_ready())

    async def model(request: HttpRequest) -> Response:
        return json_response(inference.metadata(runtime, **request.path_params))

    async def model_ready(request: HttpRequest) -> Response:
        return _ready(inference.why_not(runtime, **request.path_params))

    async def infer(request: HttpRequest) -> Response:
        return await measured(runtime, partial(_infer, runtime, request))

    of_models = [
        Route(path + suffix, handle, methods=[method])
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        for suffix, handle, method in (
            ("", model, "GET"),
            ("/ready", model_ready, "GET"),
            ("/infer", infer, "POST"),
        )
    ]
    return [
        Route("/v2", server, methods=["GET"]),
        Route("/v2/health/live", live, methods=["GET"]),
        Route("/v2/health/ready", ready, methods=["GET"]),
        *of_models,
    ]


def _ready(why_not: str) -> Response:
    if why_not:
        raise NotReadyError(why_not)
    return json_response({"ready": True})


async def _infer(runtime: Runtime, request: HttpRequest, reached: Reached) -> Response:
    headers = request.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedImageError("the body is compressed; send it as it is")
    timeout_s = params.read_timeout(headers.get("polyolo-timeout-ms"), runtime.timeout_s)
    async with deadline(timeout_s):
        with ExitStack() as held:
            share = Share(runtime.budget)
            held.callback(share.release)
            limit = runtime.limits.max_bytes + OVERHEAD
            refusal = TooLargeError(f"a request may have at most {limit:,} bytes")
            body = b"".join([c async for c in received(request, share, limit, refusal)])
            what = _read(body, headers.get(_HEADER_LENGTH), **request.path_params)
            del body  # the pictures are copies
            async with while_connected(request):
                request_id = request.scope["state"]["request_id"]
                outputs, found = await inference.infer(runtime, what.question, request_id, reached)
    return _answer(what, found[0].ref, outputs, metering(found))


def _read(body: bytes, header_length: str | None, name: str, version: str = "") -> _Inference:
    """Read the body of a request. Raises MalformedRequestError, InvalidValueError."""
    size = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 10
        size = int(header_length) if digits else -1
        if not 0 <= size <= len(body):
            raise MalformedRequestError(
                f"Inference-Header-Content-Length must be 0 to {len(body)}, the body's length; "
                f"not {header_length[:20]!r}"
            )
    if body.count(b",", 0, size) > _MOST_COMMAS:
        raise MalformedRequestError("the JSON holds far more values than a request needs")
    document = decode_json(body[:size], _Document)
    settings = dict(document.parameters)
    binary = _flag(settings.pop(_PARAMETER, False), _PARAMETER)
    for output in document.outputs:
        _only(output.parameters, "binary_data", f"the output {output.name[:40]!r}")
    outputs = inference.wanted(output.name for output in document.outputs)
    asked = {
        output.name: _flag(output.parameters.get("binary_data", binary), "binary_data")
        for output in document.outputs
    }
    return _Inference(
        question=Question(
            asked=inference.asked(name, version, {k: str(v) for k, v in settings.items()}),
            pictures=_pictures(document.inputs, memoryview(body)[size:]),
            outputs=outputs,
        ),
        id=document.id,
        binary={name: asked.get(name, binary) for name in outputs},
    )


def _pictures(inputs: list[_Input], rest: memoryview) -> list[bytes]:
    """Return the pictures of the one input. rest: what follows the JSON header."""
    one = inputs[0] if inputs else _Input(name="", datatype="", shape=[])
    count = inference.check_input([each.name for each in inputs], one.datatype, one.shape)
    _only(one.parameters, ("binary_data_size", "content_type"), "the input image")
    size = one.parameters.get("binary_data_size")
    if (size is None) == (one.data is None):
        raise MalformedRequestError(
            "the input image needs its elements either in data or, with binary_data_size, behind "
            "the JSON header"
        )
    if (0 if size is None else size) != len(rest):
        raise MalformedRequestError(
            f"{len(rest)} bytes follow the JSON header, whose length Inference-Header-Content-"
            f"Length says; binary_data_size says {0 if size is None else size}"
        )
    if one.data is None:
        return inference.split_bytes(rest, count)
    if one.parameters.get("content_type", "base64") != "base64":
        raise InvalidValueError("content_type must be base64: in JSON a picture comes in base64")
    if len(one.data) > count:
        inference.check_count([b""] * len(one.data), count)
    elements = [e for each in one.data for e in ([each] if isinstance(each, str) else each)]
    try:
        pictures = [base64.b64decode(element, validate=True) for element in elements]
    except (binascii.Error, ValueError):
        raise MalformedRequestError(
            "in JSON an element of the input image is the encoded picture in base64; send it so, "
            "or as binary data"
        ) from None
    inference.check_count(pictures, count)
    return pictures


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError(f"{name} must be true or false")
    return value


def _only(parameters: Parameters, known: str | tuple[str, ...], of: str) -> None:
    """Refuse parameters that nothing here knows: ignoring them would not do what was asked."""
    names = (known,) if isinstance(known, str) else known
    for name in parameters:
        if name not in names:
            raise InvalidValueError(
                f"{of} has no parameter {name[:40]!r}; there is {' and '.join(names)}"
            )


def _answer(
    what: _Inference, ref: ModelRef, outputs: list[Output], headers: dict[str, str]
) -> Response:
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for output in outputs:
        tensor = output.tensor
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if what.binary[tensor.name]:
            entry["parameters"] = {"binary_data_size": len(output.raw)}
            parts.append(output.raw)
        else:
            entry["data"] = inference.numbers(output)
        described.append(entry)
    document: dict[str, Any] = {
        "model_name": ref.name,
        "model_version": str(ref.version),
        "outputs": described,
    }
    if what.id is not None:
        document["id"] = what.id
    response = json_response(document, headers=headers)
    if not parts:
        return response
    header = bytes(response.body)
    return Response(
        b"".join([header, *parts]),
        headers=headers | {_HEADER_LENGTH: str(len(header))},
        media_type="application/octet-stream",
    )
