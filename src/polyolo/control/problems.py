"""Every error of the control API as a problem document, FastAPI's own included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polyolo.control.api.bodies import Problem
from polyolo.errors import InvalidValueError, MalformedRequestError, PolyoloError
from polyolo.web import as_polyolo_error, problem_response

DESCRIBED: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {}}, "model": Problem}
    for status, text in (
        ("4XX", "The request cannot be answered as it is."),
        ("5XX", "The platform cannot answer it now."),
    )
}
"""What the OpenAPI document says of errors, for every route."""


def install(app: FastAPI) -> None:
    """Have `app` answer its errors in our words."""
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (PolyoloError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    known = as_polyolo_error(error)
    if known is None:  # raised again after this answer, and logged by web.Service
        known = PolyoloError("something went wrong here; the request id names it in our log")
    answer = problem_response(known, request.url.path)
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        answer.headers["allow"] = error.headers["Allow"]
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    found: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    if any(one["type"] == "json_invalid" for one in found):
        return await _answer(request, MalformedRequestError("the body is not valid JSON"))
    said = "; ".join(_worded(one) for one in found[:5])
    kind = request.headers.get("content-type", "")
    if request.method != "GET" and "json" not in kind:
        said += "; send the body as JSON, with the header Content-Type: application/json"
    return await _answer(request, InvalidValueError(said))


def _worded(one: Any) -> str:
    where = ".".join(str(part) for part in one["loc"] if part not in ("body", "query", "path"))
    message = str(one["msg"])
    return f"{where or 'the body'}: {message[:1].lower()}{message[1:]}"
