"""One call to polyolo as data: what to send, how to read the answer, when to try again.

Nothing here opens a connection, so the sync and the async client share all of it.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import httpx
import msgspec

from polyolo.errors import (
    DeadlineExceededError,
    InvalidValueError,
    NotReadyError,
    PolyoloError,
    UnauthenticatedError,
    from_problem,
)

DEFAULT_URL = "http://127.0.0.1:8700"

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Told of (bytes sent, bytes in all) as a file goes out."""

_CHUNK = 1 << 20  # bytes of a file held in memory at once
_FIRST_PAUSE = 0.1  # seconds; doubles with each try: a gateway that restarts is back in about 1 s


@dataclass(frozen=True, slots=True)
class File:
    """A request body that is read from disk as it is sent, never as a whole."""

    path: Path
    progress: Progress | None = None
    start: int = 0
    """The first byte that is sent."""
    size: int | None = None
    """Bytes of the file, if known: what is appended meanwhile is not sent."""

    def beginning_at(self, start: int) -> File:
        """Return the rest of the file as a body of its own."""
        return replace(self, start=start)

    def length(self) -> int:
        """Return how many bytes are sent."""
        return self._end() - self.start

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes, 1 MiB at a time."""
        end, at = self._end(), self.start
        with self.path.open("rb") as file:
            file.seek(at)
            while chunk := file.read(min(_CHUNK, end - at)):
                yield chunk
                at += len(chunk)
                if self.progress is not None:
                    self.progress(at, end)

    def _end(self) -> int:
        return self.path.stat().st_size if self.size is None else self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One operation on the service: a request, and how to read its answer as a T."""

    method: str
    path: str
    read: Callable[[bytes], T]
    """Turns the body of a good answer into the result."""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | File = b""
    repeatable: bool = False
    """True when sending it twice does no more than sending it once."""
    into: Path | None = None
    """File that the body of a good answer is written to as it comes, in place of memory; `read`
    then gets no bytes."""
    anonymous: bool = False
    """True when it says itself who asks: the client's own credential stays at home."""


def base_url(url: str) -> str:
    """Return `url` as paths can be appended to it; raise InvalidValueError for anything else."""
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host:
            return url.rstrip("/")
    raise InvalidValueError(
        f"{url!r} is not the URL of a service; write it like {DEFAULT_URL} "
        "(in POLYOLO_URL or with --url)"
    )


def trusted(ca: str | os.PathLike[str] | None) -> ssl.SSLContext | bool:
    """Return what servers are trusted: the certificates in a PEM file, or the usual ones.

    Raises InvalidValueError.
    """
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidValueError(
            f"{ca} holds no certificates to trust ({error.strerror}); see --ca and POLYOLO_CA"
        ) from None


def call_headers(call: Call[T], api_key: str | None) -> dict[str, str]:
    """Return the headers of a call, credential included."""
    headers = dict(call.headers)
    if api_key is not None and not call.anonymous:
        if not api_key.isascii() or not api_key.isprintable():
            raise UnauthenticatedError(
                "the key holds characters that no key has; copy it again from where it was printed"
            )
        headers["authorization"] = f"Bearer {api_key}"
    if isinstance(call.body, File):  # else a streamed body goes out chunked, its size unknown
        headers["content-length"] = str(call.body.length())
    return headers


class Download:
    """The file that an answer is written to: beside its place, and put there once it is whole."""

    def __init__(self, target: Path) -> None:
        """Open it. Raises OSError."""
        self._target = target
        self._part = target.with_name(f".{target.name}.part")
        self._file = self._part.open("wb")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def finish(self) -> None:
        """Put the file in its place."""
        self._file.close()
        self._part.replace(self._target)

    def close(self) -> None:
        """Delete what is not finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def read_answer(call: Call[T], response: httpx.Response) -> T:
    """Return the result of a call; raise the error that the server's answer tells of."""
    if response.is_success:
        try:
            return call.read(b"" if call.into else response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise PolyoloError(
                f"{response.url.host} answered, but not as polyolo does; "
                "check the URL, and that client and server are of the same version"
            ) from error
    try:
        document = json.loads(response.content)
    except ValueError:
        document = None  # a proxy on the way, perhaps: the status says enough
    if isinstance(document, dict) and "error_description" in document:  # OAuth2's own words
        document = {"detail": document["error_description"]}
    raise from_problem(response.status_code, document, _retry_after(response))


def connection_error(error: httpx.TransportError, url: str) -> PolyoloError:
    """Return the error that tells a person of a connection that failed."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        failure = NotReadyError(
            f"the certificate of {url} is not trusted: name the file of the one that should be "
            "with --ca or POLYOLO_CA"
        )
        failure.retryable = False  # type: ignore[misc]  # it would be the same next time
        return failure
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NotReadyError(f"cannot reach {url}; is `polyolo up` running?", retry_after=0.0)
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceededError(
            f"{url} took too long to answer; try again, or allow more time", retry_after=0.0
        )
    return NotReadyError(f"{url} broke the connection off; try again", retry_after=0.0)


def pause(
    call: Call[T], error: PolyoloError, tries: int, retries: int, left: float
) -> float | None:
    """Return the seconds to wait before another try, or None when there is to be none.

    tries: those made before the one that failed with `error`. left: seconds left for all of them.
    """
    never_arrived = isinstance(error.__cause__, httpx.ConnectError)
    if tries >= retries or not error.retryable or not (call.repeatable or never_arrived):
        return None
    wait = max(error.retry_after or 0.0, _FIRST_PAUSE * 2.0**tries)
    return wait if wait < left else None


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):  # ValueError: the date form, which polyolo never sends
        return None
