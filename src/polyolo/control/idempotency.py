"""Requests that come twice: the same Idempotency-Key gets the same answer, the work is done once.

An answer is kept for 24 hours, per caller and key. It may hold a secret that is shown once (an API
key), so it is encrypted by a key that is derived from the caller's own credential and the
Idempotency-Key, neither of which is stored: only the same caller, asking again, can have it
opened. Without a credential (registration) there is nothing to derive such a key from; then the
secrets are left out of what is kept, and null when it is told again.

A first request whose outcome is not known, since the platform was killed meanwhile, is never done
a second time: the answer is 409 until the day is over.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control import access, names, secrets
from polyolo.control.api.asking import about, authenticate, declared, source_of
from polyolo.control.plane import Plane
from polyolo.control.service import replays
from polyolo.control.service.replays import Kept
from polyolo.errors import ConflictError, InvalidValueError

HEADER = "idempotency-key"
_LONGEST = 255  # characters of a key
_SHOWN_ONCE = frozenset({"key", "token", "client_secret"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class OnceRoute(APIRoute):
    """A route whose POST is done once for each Idempotency-Key."""

    def get_route_handler(self) -> Handler:
        """Return FastAPI's handler, with what was answered before in front of it."""
        handler = super().get_route_handler()
        if self.methods != {"POST"}:
            return handler
        public = declared(self) in access.PUBLIC

        async def once(request: Request) -> Response:
            if HEADER not in request.headers:
                return await handler(request)
            case = await run_in_threadpool(_case, request, public=public)
            return await _once(case, _Read(request), handler)

        return once


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One caller's one key. sealed_by: 32 bytes; None for the platform's own key."""

    plane: Plane
    id: str
    sealed_by: bytes | None

    def seal(self, answer: str) -> str:
        ledger, place = self.plane.ledger, replays.place(self.id)
        if self.sealed_by is None:
            return replays.seal(ledger, self.plane.vault, self.id, _without_secrets(answer))
        return secrets.seal(self.sealed_by, answer.encode(), place)

    def unseal(self, sealed: str) -> str:
        if self.sealed_by is None:
            return replays.unseal(self.plane.ledger, self.plane.vault, self.id, sealed)
        return secrets.unseal(self.sealed_by, sealed, replays.place(self.id)).decode()


class _Read(Request):
    """A request that remembers the digest of its body as that is read."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.scope, request.receive)
        self._sha256 = hashlib.sha256()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in chunks, as it comes in."""
        again = hasattr(self, "_body")  # kept by `body()`: it went by here before
        async for chunk in super().stream():
            if not again:
                self._sha256.update(chunk)
            yield chunk

    async def fingerprint(self, *, public: bool) -> str:
        """Return the digest of what is asked, the body read to its end."""
        if public:  # holds a password, of which no quick digest may be kept
            body = _without_password(await self.body())
        else:
            if not self._stream_consumed:
                async for _ in self.stream():
                    pass
            body = self._sha256.digest()
        what = f"{self.method} {self.url.path}?{self.url.query}\n".encode()
        return hashlib.sha256(what + body).hexdigest()


def _case(request: Request, *, public: bool) -> _Case:
    plane: Plane = request.app.state.plane
    key = request.headers[HEADER]
    if not 1 <= len(key) <= _LONGEST:
        raise InvalidValueError(f"Idempotency-Key: it must have 1 to {_LONGEST} characters")
    if public:
        asker: tuple[str, ...] = ("public", source_of(request))
        sealed_by = None
    else:
        caller = authenticate(request)
        who = caller.who
        # Whoever may do less than before, or is suspended, is not told what they once were.
        asker = (who.kind, who.id, who.tenant or "", caller.state, *who.scopes)
        sealed_by = hmac.digest(caller.secret.encode(), f"replay {key}".encode(), "sha256")
    return _Case(plane=plane, id=names.digest(json.dumps([*asker, key])), sealed_by=sealed_by)


async def _once(case: _Case, request: _Read, handler: Handler) -> Response:
    ledger = case.plane.ledger
    known = await run_in_threadpool(replays.claim, ledger, case.id)
    if known is not None:
        return await _replayed(case, known, request)
    release = partial(run_in_threadpool, replays.release, ledger, case.id)
    try:
        answer = await handler(request)
    except Exception:  # it was refused: nothing was done
        await release()
        raise
    if answer.status_code >= 300 or "set-cookie" in answer.headers:
        await release()
        return answer
    kept = Kept(
        request=await request.fingerprint(public=case.sealed_by is None),
        status=answer.status_code,
        tenant=about(request.scope["state"]),
        answer=await run_in_threadpool(case.seal, bytes(answer.body).decode()),
    )
    await run_in_threadpool(replays.keep, ledger, case.id, kept)
    return answer


async def _replayed(case: _Case, known: Kept, request: _Read) -> Response:
    if not known.status:
        raise ConflictError(
            "the first request with this Idempotency-Key has not been answered; wait for it, or "
            "see whether its work was done and use another key",
            retry_after=1.0,
        )
    if await request.fingerprint(public=case.sealed_by is None) != known.request:
        raise InvalidValueError(
            "this Idempotency-Key was used for another request; use a new key for a new request"
        )
    try:
        body = await run_in_threadpool(case.unseal, known.answer)
    except secrets.SealedError:
        raise ConflictError(
            "the first request was sent with another credential of yours, and its answer can be "
            "opened with that one only"
        ) from None
    return Response(
        body,
        known.status,
        {"idempotency-replayed": "true", "cache-control": "no-store"},
        media_type="application/json",
    )


def _without_password(body: bytes) -> bytes:
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body  # not what was answered well before, so it is compared with that and forgotten
    if isinstance(fields, dict):
        fields.pop("password", None)
    return json.dumps(fields, sort_keys=True).encode()


def _without_secrets(answer: str) -> str:
    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: None if k in _SHOWN_ONCE else cleared(v) for k, v in value.items()}
        return [cleared(one) for one in value] if isinstance(value, list) else value

    return json.dumps(cleared(json.loads(answer)))
