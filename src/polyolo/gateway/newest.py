"""Asks control what the newest revision is, for those who would be turned away by an older one.

A key works at every door as soon as whoever made it has it: where several control planes share a
database, a gateway's own one may hear of it a moment later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from polyolo.errors import OverloadedError
from polyolo.gateway.upstream import Upstream, UpstreamError

Ask = Callable[[], Awaitable[int]]
"""Returns the revision of this moment. Raises UpstreamError, OverloadedError."""

_BETWEEN_S = 0.02  # between two questions: a flood of wrong keys costs control next to nothing
_ANSWER_S = 1.0
_AWAY_S = 1.0  # between tries while control is away, so that nobody waits for it

_decode = msgspec.json.Decoder(int).decode


async def nobody() -> int:
    """Stand for a control plane that is not there; see Ask."""
    raise UpstreamError("there is nobody to ask for the newest revision")


async def ask(control: Upstream, token: str) -> int:
    """Ask control; see Ask."""
    status, body = await control.call(
        "GET", "/internal/v1/revision", headers={"authorization": f"Bearer {token}"}
    )
    if status != 200:
        raise UpstreamError(f"control answered {status} to a question for the newest revision")
    return _decode(body)


class Newest:
    """The questions under way, each for all who came before it was asked. On the loop's thread."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: asyncio.Task[int | None] | None = None
        self._next: asyncio.Task[int | None] | None = None
        self._away_until = -float("inf")

    async def revision(self) -> int | None:
        """Return a revision no older than this call; None when control does not tell."""
        if self._clock() < self._away_until:
            return None
        if self._next is None:
            self._next = asyncio.create_task(self._question(self._asked))
        return await asyncio.shield(self._next)  # others wait for it too

    async def _question(self, before: asyncio.Task[int | None] | None) -> int | None:
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(_BETWEEN_S)
        self._asked, self._next = self._next, None  # who comes from now on is told later
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._ask()
        except (UpstreamError, OverloadedError, TimeoutError, msgspec.DecodeError):
            self._away_until = self._clock() + _AWAY_S
            return None

    def close(self) -> None:
        """Give up what is under way."""
        for question in (self._asked, self._next):
            if question is not None:
                question.cancel()
