"""Passes one request on to an upstream and its answer back. Nothing of a body is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from starlette.types import Receive, Scope, Send

from polyolo.errors import NotReadyError, PolyoloError
from polyolo.gateway.endpoints import OutOfReachError
from polyolo.gateway.headers import Headers, for_client
from polyolo.gateway.inbound import Inbound, Leash, Pace
from polyolo.gateway.upstream import (
    Answer,
    BrokenOffError,
    NotReachedError,
    Upstream,
    UpstreamError,
)
from polyolo.web import problem_response

_PIECE = 256 * 1024  # of a body sent at once: sending must not hold up the event loop


def _pieces(body: bytes) -> bytes | AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]

    return body if len(body) <= _PIECE else pieces()


class Exchange:
    """One request on its way through: what came in, what the client got, what was said of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._send = send
        self._body: bytes | None = None
        self.inbound = Inbound(scope["headers"], receive)
        self.status = 0
        """Of the answer that the client gets; 0 before it begins."""
        self.ours: dict[bytes, bytes] = {}
        """The Polyolo-* headers of the upstream's answer."""
        self.added: Mapping[str, str] = {}
        """Headers that the upstream's answer gets on its way."""

    async def take_in(self, leash: Leash, whole: int | None = None) -> None:
        """Read the body now if it is at most `whole` bytes, and watch the client from then on.

        whole: None for any body; one that is larger is streamed by `forward`.
        """
        inbound = self.inbound
        if whole is not None and (inbound.length is None or inbound.length > whole):
            return
        self._body = b"" if inbound.done else await inbound.whole()
        leash.watch(inbound.hung_up())

    async def forward(
        self,
        leash: Leash,
        upstream: Upstream,
        headers: Headers,
        *,
        repeatable: bool,
        on_head: Callable[[], None] = lambda: None,
    ) -> None:
        """Send the request on and pass the answer back.

        repeatable: doing it twice does no harm, so that it may be sent again over a new connection
        when a kept one turns out to be dead. on_head: called when the answer begins. Raises
        OutOfReachError if the other end cannot be reached or breaks off; NotReadyError if `status`
        is set then: nothing is left but cutting the client off.
        """
        scope, body = self.scope, self._body
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        length = self.inbound.length if body is None else len(body)
        if length is not None and (body is None or length > _PIECE):  # else it is set for us
            headers.append((b"content-length", b"%d" % length))
        method, begun = scope["method"], False
        try:
            try:
                piped = self._stream(leash) if body is None else _pieces(body)
                answer = await upstream.ask(method, target, headers, piped)
            except BrokenOffError:
                begun = True
                if body is None or not repeatable:
                    raise
                answer = await upstream.ask(method, target, headers, _pieces(body), fresh=True)
            on_head()
            with answer:
                await self._answer(leash, answer)
        except UpstreamError as error:
            if self.status:
                raise NotReadyError("what should answer broke off") from error
            begun = begun or not isinstance(error, NotReachedError)
            raise OutOfReachError(begun=begun) from error

    async def _stream(self, leash: Leash) -> AsyncIterator[bytes]:
        """Yield the body as it comes, and watch the client from then on."""
        try:
            while not self.inbound.done:
                if piece := await self.inbound.piece():
                    yield piece
        except Exception as error:
            leash.end(error)  # the upstream's client would wrap it
            raise
        leash.watch(self.inbound.hung_up())

    async def _answer(self, leash: Leash, answer: Answer) -> None:
        headers, self.ours = for_client(answer.headers)
        headers += [(name.encode(), value.encode()) for name, value in self.added.items()]
        early = await self._start(answer.status, headers)
        held: bytes | None = None  # one piece behind, so that the last is sent as the last
        async for piece in answer.pieces():
            if held is not None:
                await self._send({"type": "http.response.body", "body": held, "more_body": True})
            held = piece
        leash.unwatch()
        await self._send({"type": "http.response.body", "body": held or b"", "more_body": early})

    async def refuse(self, error: PolyoloError) -> None:
        """Answer with an error's problem document."""
        problem = problem_response(error, self.scope["path"])
        early = await self._start(error.status, list(problem.raw_headers))
        body = bytes(problem.body)
        await self._send({"type": "http.response.body", "body": body, "more_body": early})

    async def _start(self, status: int, headers: Headers) -> bool:
        """Begin the answer, and return whether it is early: the body is still coming."""
        early = not self.inbound.done
        if early and self.inbound.endless:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.status = status
        return early

    async def finish(self, pace: Pace) -> None:
        """End an answer that came before the whole body had. pace: of reading the rest."""
        if self.status and not self.inbound.done:
            await self.inbound.linger(pace)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
