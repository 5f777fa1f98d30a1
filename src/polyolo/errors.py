"""One error tree: every failure that a client can see, with its HTTP and gRPC status.

An error's detail is one or two sentences for the person who can act on it: what is wrong, and
what to do next. It never carries a secret, a picture or another tenant's name.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar


class PolyoloError(Exception):
    """A failure with a name. Raise a subclass; this class itself means a defect of ours (500)."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = 1.0 if retry_after is None and self.retryable else retry_after
        """Seconds until another try makes sense; set for every retryable error."""
        self.added: dict[str, str] = {}
        """Headers of the answer that have nothing to do with the failure."""
        self.extensions: dict[str, Any] = {}
        """More members of the problem document (RFC 9457), for those who know the error."""

    def problem(self, instance: str = "") -> dict[str, Any]:
        """Return the problem document (RFC 9457) that tells a client of this error."""
        document: dict[str, Any] = {
            "type": f"urn:polyolo:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }
        if instance:
            document["instance"] = instance
        return document

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the error's answer."""
        if self.retry_after is None:
            return self.added
        # RFC 9110: whole seconds; rounded up, for who comes too early comes in vain.
        return {**self.added, "retry-after": str(max(1, math.ceil(self.retry_after)))}


class MalformedRequestError(PolyoloError):
    """The request cannot be read as what it claims to be."""

    code, title, status, grpc = "malformed-request", "Malformed request", 400, "INVALID_ARGUMENT"


class UnauthenticatedError(PolyoloError):
    """The credential is missing, unknown, malformed, expired or revoked."""

    code, title, status, grpc = "unauthenticated", "Not authenticated", 401, "UNAUTHENTICATED"

    def headers(self) -> dict[str, str]:
        """Return the challenge that RFC 6750 asks for."""
        return {"www-authenticate": "Bearer"}


class InvalidTokenError(UnauthenticatedError):
    """The access token is malformed, forged, expired, revoked or meant for somebody else."""

    code, title = "invalid-token", "Access token not valid"

    def headers(self) -> dict[str, str]:
        """Return the challenge that RFC 6750 asks for: the client should get another token."""
        return {"www-authenticate": 'Bearer error="invalid_token"'}


class QuotaUsedUpError(PolyoloError):
    """The tenant's quota or spend cap is used up."""

    code, title, status, grpc = "quota-used-up", "Quota used up", 402, "RESOURCE_EXHAUSTED"


class ForbiddenError(PolyoloError):
    """The caller is known, but not allowed."""

    code, title, status, grpc = "forbidden", "Not allowed", 403, "PERMISSION_DENIED"


class InsufficientScopeError(ForbiddenError):
    """The access token is good, but not for this."""

    code, title = "insufficient-scope", "Scope missing"

    def headers(self) -> dict[str, str]:
        """Return the challenge that RFC 6750 asks for."""
        return {"www-authenticate": 'Bearer error="insufficient_scope"'}


class NotFoundError(PolyoloError):
    """There is no such thing, or it is another tenant's: the two look the same."""

    code, title, status, grpc = "not-found", "Not found", 404, "NOT_FOUND"


class MethodNotAllowedError(PolyoloError):
    """The path exists, the method does not."""

    code, title, status, grpc = "method-not-allowed", "Method not allowed", 405, "UNIMPLEMENTED"


class ConflictError(PolyoloError):
    """The change contradicts what is there."""

    code, title, status, grpc = "conflict", "Conflict", 409, "ABORTED"


class BelowToleranceError(ConflictError):
    """A version is not as good as its model's tolerance asks; `comparison` says where."""

    code, title = "below-tolerance", "Not good enough"


class TooLargeError(PolyoloError):
    """Too many bytes or pixels."""

    code, title, status, grpc = "too-large", "Too large", 413, "RESOURCE_EXHAUSTED"


class UnsupportedImageError(PolyoloError):
    """The body is not an image of a supported type."""

    code, title, status, grpc = "unsupported-image", "Unsupported type", 415, "INVALID_ARGUMENT"


class UndecodableImageError(PolyoloError):
    """The body claims to be an image, but cannot be decoded."""

    code, title, status, grpc = "undecodable-image", "Undecodable image", 422, "INVALID_ARGUMENT"


class InvalidValueError(PolyoloError):
    """A parameter is out of range or of the wrong type."""

    code, title, status, grpc = "invalid-value", "Invalid value", 422, "INVALID_ARGUMENT"


class ModelRefusedError(PolyoloError):
    """A model file cannot be served; the detail says why and what would be accepted."""

    code, title, status, grpc = "model-refused", "Model refused", 422, "INVALID_ARGUMENT"


class RateLimitedError(PolyoloError):
    """The tenant is over its plan's limit."""

    code, title, status, grpc = "rate-limited", "Over the limit", 429, "RESOURCE_EXHAUSTED"
    retryable = True


class ModelFailedError(PolyoloError):
    """The model itself failed on this request: it crashed, or gave results that are not numbers."""

    code, title, status, grpc = "model-failed", "Model failed", 500, "INTERNAL"


class OverloadedError(PolyoloError):
    """There is more work than can be queued; come again shortly."""

    code, title, status, grpc = "overloaded", "Overloaded", 503, "UNAVAILABLE"
    retryable = True


class NotReadyError(PolyoloError):
    """What should answer is starting, restarting or out of reach; come again shortly."""

    code, title, status, grpc = "not-ready", "Not ready", 503, "UNAVAILABLE"
    retryable = True


class InsufficientStorageError(PolyoloError):
    """The disk is full; nothing was kept."""

    code, title, status, grpc = "storage-full", "Storage full", 507, "RESOURCE_EXHAUSTED"


class DeadlineExceededError(PolyoloError):
    """The request's time is over."""

    code, title, status, grpc = "deadline-exceeded", "Deadline passed", 504, "DEADLINE_EXCEEDED"
    retryable = True


def _tree(root: type[PolyoloError]) -> list[type[PolyoloError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]


_BY_CODE = {error.code: error for error in _tree(PolyoloError)}
_MEMBERS = {"type", "title", "status", "detail", "instance"}  # of every problem document
_BY_STATUS = {error.status: error for error in reversed(_tree(PolyoloError))}


def by_code(code: str, detail: str) -> PolyoloError:
    """Return the error of that code; PolyoloError itself for a code that is not ours."""
    return _BY_CODE.get(code, PolyoloError)(detail)


def from_problem(status: int, document: object, retry_after: float | None = None) -> PolyoloError:
    """Return the error that a problem document tells of; for the SDK.

    status: the HTTP status. document: the parsed body, of any shape.
    """
    fields = document if isinstance(document, dict) else {}
    code = str(fields.get("type", "")).rpartition(":")[2]
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    detail = str(fields.get("detail") or fields.get("title") or f"the server answered {status}")
    if kind is None:
        error = PolyoloError(detail)
        error.status = status  # type: ignore[misc]  # a status that no class of ours carries
        return error
    known = kind(detail, retry_after=retry_after)
    known.extensions = {name: value for name, value in fields.items() if name not in _MEMBERS}
    return known
