"""Reads a client's request: its body in pieces, and whether the client is still there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from polyolo.errors import DeadlineExceededError, TooLargeError

_LINGER_BYTES = 64 * 1024 * 1024  # of a refused body read and dropped, so that the answer arrives
_LINGER_S = 10.0
_SHORT_S = 0.005  # not worth a timer


class Inbound:
    """The body of a client's request: read in pieces, counted, bounded."""

    def __init__(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> None:
        self._receive = receive
        self.limit: int | None = None
        """Bytes accepted; None: no bound. Set by `bound`."""
        self.received = 0
        self.hold: Callable[[int], None] | None = None
        """Told of the bytes of each piece that is kept; may raise."""
        self.length: int | None = None
        """Declared bytes; None for a chunked body."""
        chunked = False
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value)  # the server has refused what is no number
            elif name == b"transfer-encoding":
                chunked = True
        if not chunked and self.length is None:
            self.length = 0
        self.done = self.length == 0

    def bound(self, limit: int) -> None:
        """Accept at most `limit` bytes. Raises TooLargeError, now or when they have come."""
        self.limit = limit
        if self.length is not None and self.length > limit:
            raise self._too_large()

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is larger than the {self.limit:,} bytes allowed here")

    async def piece(self) -> bytes:
        """Return the next piece. Raises ClientDisconnect, TooLargeError."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data: bytes = message.get("body", b"")
        self.received += len(data)
        self.done = not message.get("more_body", False)
        if self.limit is not None and self.received > self.limit:
            raise self._too_large()
        if self.hold is not None:
            self.hold(len(data))
        return data

    async def whole(self) -> bytes:
        """Return all of a body."""
        data = await self.piece()
        if self.done:
            return data
        pieces = [data]
        while not self.done:
            pieces.append(await self.piece())
        return b"".join(pieces)

    async def hung_up(self) -> None:
        """Wait until the client hangs up; the body has been read. Raises ClientDisconnect."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect

    async def linger(self, pace: Pace) -> None:
        """Read and drop what still comes, within bounds: a client that sends must not see a reset
        in the place of its answer. pace: of all that is dropped."""
        self.limit = self.hold = None
        bound = self.received + _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self.done and self.received < bound:
                    await pace.spend(len(await self.piece()))
        except (TimeoutError, ClientDisconnect):
            return

    @property
    def endless(self) -> bool:
        """True if `linger` may not see the end of what comes."""
        return self.length is None or self.length > _LINGER_BYTES


class Pace:
    """How fast the bodies of refused requests are read, all together: reading them costs what
    others need, so a flood of them is slowed down to this."""

    def __init__(
        self,
        rate: float = 128 * 1024 * 1024,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read so many bytes a second. 128 MiB take about a twelfth of a core."""
        self._rate = rate
        self._clock = clock
        self._free = 0.0

    async def spend(self, size: int) -> None:
        """Wait as long as it takes to be within the rate after so many bytes."""
        now = self._clock()
        self._free = max(self._free, now) + size / self._rate
        if self._free - now > _SHORT_S:
            await asyncio.sleep(self._free - now)


class Leash:
    """Ends a request when its client hangs up or its time is over, wherever it waits.

    Used in the request's own task. Leaving the context raises what ended the request:
    ClientDisconnect, DeadlineExceededError, or what the watched coroutine raised.
    """

    __slots__ = ("_answered", "_error", "_left", "_loop", "_seconds", "_task", "_timer", "_watcher")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._error: BaseException | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._answered = False
        self._left = False

    def __enter__(self) -> Self:
        """Start the clock."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(
            self._seconds, self.end, DeadlineExceededError("the request took too long")
        )
        return self

    def watch(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run beside the request; what it raises ends the request."""
        if self._answered:  # a body that ends just after an early answer has
            coroutine.close()
            return
        self._watcher = self._loop.create_task(coroutine)
        self._watcher.add_done_callback(self._watched)

    def _watched(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            self.end(error)

    def unwatch(self) -> None:
        """Stop watching, for good: from here on the request ends by itself or by its time."""
        self._answered = True
        if self._watcher is not None:
            self._watcher.remove_done_callback(self._watched)
            self._watcher.cancel()
            self._watcher = None

    def end(self, error: BaseException) -> None:
        """End the request with an error, from outside its task; no effect once it is over."""
        if self._error is None and not self._left:
            self._error = error
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Stop the clock and the watching."""
        self._timer.cancel()
        self.unwatch()
        self._left = True
        if (
            self._error is not None
            and self._task.uncancel() == 0  # else somebody cancelled the task besides
            and kind in (None, asyncio.CancelledError)
        ):
            raise self._error from None
