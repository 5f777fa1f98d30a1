"""How a model file gets to the service: sent on where the connection broke off, then watched.

A conversation of several calls: a generator that yields what is to be done next and is given what
came of it, so that both clients can hold it, each in its own way.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from polyolo.client.call import Call, File, Progress
from polyolo.client.compose import delete, each, get, one, tenant_path
from polyolo.errors import ConflictError, PolyoloError, by_code
from polyolo.resources import ModelVersion, Upload

T = TypeVar("T")

_PATIENCE = 8
"""Tries in a row that bring no byte across, with pauses up to 10 s: about 45 s in all."""
_LONGEST_PAUSE_S = 10.0
_WAIT_S = 20  # that the service holds an answer until there is an outcome
_UNDER_WAY = ("receiving", "received", "checking")


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to do for so many seconds."""

    seconds: float


Step = Call[Any] | Pause | Callable[[], Any]
"""A call to be sent, a pause, or work that may block."""
Conversation = Generator[Step, Any, T]


def list_uploads(tenant: str = "me") -> Call[list[Upload]]:
    """Return a tenant's uploads, the newest first: those under way, and outcomes of 7 days."""
    return get(f"{tenant_path(tenant)}/uploads", each(Upload, "uploads"))


def get_upload(upload: str, *, tenant: str = "me") -> Call[Upload]:
    """Return how far an upload is, or what came of it."""
    return get(f"{tenant_path(tenant)}/uploads/{upload}", one(Upload))


def cancel_upload(upload: str, *, tenant: str = "me") -> Call[None]:
    """Cancel an upload, or forget its outcome."""
    return delete(f"{tenant_path(tenant)}/uploads/{upload}")


def push_model(
    name: str,
    file: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    tenant: str = "me",
    progress: Progress | None = None,
) -> Conversation[ModelVersion]:
    """Upload a model file as the next version of `name`.

    classes: class names by id, for a file that carries none. progress: told of (bytes sent,
    bytes in all); the async client calls it from a thread. The first model that a tenant pushes
    becomes its default; later versions answer once `use_model` says so. When the connection
    breaks off, or this program ends, the same push goes on where the other one stopped.
    Raises ModelRefusedError when the file cannot be served, with the reason.
    """
    path = Path(file)
    size, digest = yield lambda: _known(path)
    upload = yield from _opened(name, size, digest, tuple(classes), tenant)
    sent = File(path, progress, size=size)
    if upload.state == "receiving":
        upload = yield from _sent(upload, sent, tenant)
    while upload.state in _UNDER_WAY:
        query = (("wait", str(_WAIT_S)),)
        upload = yield from _patient(get(_path(tenant, upload), one(Upload), query=query))
    if upload.version is None:
        raise by_code(upload.code, upload.reason)
    version: ModelVersion = yield get(
        f"{tenant_path(tenant)}/models/{upload.model}/versions/{upload.version}", one(ModelVersion)
    )
    return version


def _opened(
    name: str, size: int, digest: str, classes: tuple[str, ...], tenant: str
) -> Conversation[Upload]:
    """Open an upload, or find the one of this very file that was not finished."""
    seen: list[Upload] = yield list_uploads(tenant)
    for upload in seen:
        same = (upload.model, upload.size, upload.sha256) == (name, size, digest)
        if same and upload.classes == classes and upload.state in _UNDER_WAY:
            found: Upload = yield get(_path(tenant, upload), one(Upload))  # with how far it is
            return found
    document = {"model": name, "size": size, "sha256": digest, "classes": classes}
    made: Upload = yield Call(
        method="POST",
        path=f"{tenant_path(tenant)}/uploads",
        headers={
            "content-type": "application/json",
            "idempotency-key": secrets.token_urlsafe(16),
        },
        body=msgspec.json.encode(document),
        read=one(Upload),
        repeatable=True,
    )
    return made


def _sent(upload: Upload, file: File, tenant: str) -> Conversation[Upload]:
    """Send what is missing, again and again until it is all there."""
    tries = 0
    while upload.state == "receiving":
        failure: PolyoloError | None = None
        try:
            yield Call(
                method="PATCH",
                path=_path(tenant, upload),
                headers={
                    "content-type": "application/partial-upload",
                    "upload-offset": str(upload.received),
                    "upload-complete": "?1",
                },
                body=file.beginning_at(upload.received),
                read=lambda _: None,
            )
        except PolyoloError as error:
            if not (error.retryable or isinstance(error, ConflictError)):
                raise
            failure = error
        before = upload.received
        upload = yield from _patient(get(_path(tenant, upload), one(Upload)))
        tries = 0 if upload.received > before else tries + 1
        if failure is not None and upload.state == "receiving":
            yield _pause(failure, tries)
    return upload


def _patient(call: Call[T]) -> Conversation[T]:
    """Make a call that may be repeated, until the service is there again."""
    for tries in itertools.count():
        try:
            answer: T = yield call
        except PolyoloError as error:
            if not error.retryable:
                raise
            yield _pause(error, tries)
        else:
            return answer
    raise AssertionError("unreachable: the loop has no end")


def _pause(error: PolyoloError, tries: int) -> Pause:
    """Return how long to wait after so many tries in vain; raise the error after too many."""
    if tries > _PATIENCE:
        raise error
    return Pause(min(max(error.retry_after or 0.0, 0.1 * 2.0**tries), _LONGEST_PAUSE_S))


def _path(tenant: str, upload: Upload) -> str:
    return f"{tenant_path(tenant)}/uploads/{upload.id}"


def _known(path: Path) -> tuple[int, str]:
    """Return a file's size and sha256."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
