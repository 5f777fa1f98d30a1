"""Speaks HTTP to one endpoint, a runtime or control, mostly over connections that it keeps.

The only module that knows aiohttp. On the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from polyolo.errors import OverloadedError

_WHOLE = 64 * 1024  # an answer of at most this many bytes is handed on in one piece
_CONNECT_S = 2.0  # the other end is on this machine or in this cluster
_IDLE_S = 30.0  # under the 75 s after which our servers close: we are the ones to close

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
_ADDED_UNASKED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

Headers = list[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """The other end could not be reached, broke off, or does not speak HTTP."""


class NotReachedError(UpstreamError):
    """Nobody was there, so nobody has seen anything of the request."""


class BrokenOffError(UpstreamError):
    """The connection was there and broke off; it may have been a kept one that was dead."""


class Answer:
    """An answer whose head has come. A context: leaving it before the end closes the connection,
    so that the other end can stop its work."""

    __slots__ = ("_over", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, over: Callable[[], None]) -> None:
        self._response = response
        self._over = over
        self.status = response.status
        self.headers: Headers = [(name.lower(), value) for name, value in response.raw_headers]
        """Names in lower case."""

    def __enter__(self) -> Self:
        """Return the answer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Give the connection back, or close it."""
        self._response.close()  # no effect on a connection that has gone back already
        self._over()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body, a small one in one piece. Raises UpstreamError if it breaks off."""
        response = self._response
        try:
            if response.content_length is not None and response.content_length <= _WHOLE:
                yield await response.read()
            else:
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"the answer broke off: {error}") from None


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return NotReachedError(f"it cannot be reached: {error}")
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return BrokenOffError(f"the connection broke off: {error}")
    if isinstance(error, aiohttp.ClientError):
        return UpstreamError(f"its answer cannot be read: {error}")
    return error


class Upstream:
    """The connections to one endpoint. Lives as long as the endpoint is in the snapshot.

    endpoint: `unix:/path` or `http://host:port`. limit: exchanges at once; more are refused with
    OverloadedError. keep: whether connections are used again.
    """

    def __init__(self, endpoint: str, *, limit: int | None = None, keep: bool = True) -> None:
        self._limit = limit
        self._busy = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._path = endpoint.removeprefix("unix:") if endpoint.startswith("unix:") else None
        self._origin = URL("http://polyolo" if self._path is not None else endpoint)
        self._kept = self._session(fresh=not keep)
        self._fresh: aiohttp.ClientSession | None = None

    def _session(self, *, fresh: bool) -> aiohttp.ClientSession:
        keep = None if fresh else _IDLE_S
        connector: aiohttp.BaseConnector
        if self._path is not None:
            connector = aiohttp.UnixConnector(
                self._path, limit=0, force_close=fresh, keepalive_timeout=keep
            )
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=fresh, keepalive_timeout=keep)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=_TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_UNASKED,
            trust_env=False,
        )

    async def ask(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes | AsyncIterator[bytes],
        *,
        fresh: bool = False,
    ) -> Answer:
        """Send a request and return its answer once the head has come.

        target: path and query as they stand in the request line. headers: with the length of a
        streamed body, else it goes in chunks. fresh: over a new connection. Cancelling closes the
        connection. Raises UpstreamError, OverloadedError.
        """
        if self._limit is not None and self._busy >= self._limit:
            raise OverloadedError("too many requests at once; come again shortly")
        path, _, query = target.decode("ascii").partition("?")
        url = URL.build(
            scheme="http",
            authority=self._origin.raw_authority,
            path=path,
            query_string=query,
            encoded=True,
        )
        pairs = CIMultiDict([(n.decode(), v.decode("utf-8", "ignore")) for n, v in headers])
        session = self._kept
        if fresh:
            session = self._fresh = self._fresh or self._session(fresh=True)
        self._busy += 1
        try:
            response = await session.request(
                method, url, data=body, headers=pairs, allow_redirects=False
            )
        except BaseException as error:  # noqa: BLE001  # translated or as it was, it goes on
            self._over()
            raise _translated(error) from None
        return Answer(response, self._over)

    def _over(self) -> None:
        self._busy -= 1
        if self._closing and not self._busy:
            self._close_sessions()

    async def call(
        self, method: str, target: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send one request and return the answer's status and body. Raises UpstreamError."""
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        with await self.ask(method, target.encode(), lines, body) as answer:
            return answer.status, b"".join([piece async for piece in answer.pieces()])

    def close(self) -> None:
        """Close the connections, as soon as the exchanges under way are over."""
        self._closing = True
        if not self._busy:
            self._close_sessions()

    def _close_sessions(self) -> None:
        for session in (self._kept, self._fresh):
            if session is not None:
                task = asyncio.get_running_loop().create_task(session.close())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
