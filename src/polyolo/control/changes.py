"""Wakes those who wait for a change: gateways for a new snapshot, answers for their effect."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_PRESENT_S = 2.0
"""A gateway that has not asked again this long after an answer is not waited for."""
_BACK_S = 6.0
"""As long as gateways take at most to find a control plane that has been away."""


class Changes:
    """The last revision, and who has it. `publish` from any thread, the rest on event loops."""

    def __init__(self, revision: int, *, back_s: float = _BACK_S) -> None:
        """Begin with the revision that the database has.

        back_s: seconds in which gateways come back that another process knew before this one.
        """
        self.revision = revision
        self._back_by = time.monotonic() + back_s
        self._before = 0
        self.closed = False
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()
        self._gateways: dict[str, tuple[int, float]] = {}

    def publish(self, revision: int, _: str | None = None) -> None:
        """Tell of a new revision; a listener of the Ledger."""
        self.revision = max(self.revision, revision)
        self._wake()

    def close(self) -> None:
        """Send everybody home: the process is about to stop."""
        self.closed = True
        self._wake()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition` holds after some change; False after that time or on close."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            waiter = (loop, loop.create_future())
            with self._lock:
                self._waiting.add(waiter)
            try:
                # Judged after queueing up: a change in between wakes us.
                if condition():
                    return True
                left = deadline - loop.time()
                if left <= 0 or self.closed:
                    return False
                with suppress(TimeoutError):
                    # Not wait_for: until Python 3.12 it loses a cancellation that comes together
                    # with the result.
                    async with asyncio.timeout(left):
                        await waiter[1]
            finally:
                with self._lock:
                    self._waiting.discard(waiter)

    async def newer(self, gateway: str, revision: int, gateways: int, seconds: float) -> bool:
        """Wait for another revision than the one that this gateway has put in force, or another
        number of gateways than it knows of (-1: whatever it is).

        gateway: its name, and after a dot what tells it from the others that stand behind the
        same door while one takes over from another.

        Another, not a later one: a database restored from a backup begins lower. Cancelling it
        means that the gateway is gone.
        """
        now = time.monotonic()
        if revision < 0 and gateways > self._before and now < self._back_by:
            # It comes back from another process. Were it told that it is alone, it would have the
            # shares of those that are about to come back too.
            self._before = gateways
            asyncio.get_running_loop().call_later(self._back_by - now + 0.01, self._wake)
        for name in [name for name, (_, gone) in self._gateways.items() if now > gone]:
            del self._gateways[name]
        mine = self._gateways[gateway] = (revision, float("inf"))  # here while it waits
        self._wake()
        try:
            found = await self.until(
                lambda: self.revision != revision or gateways not in (-1, self.gateways()), seconds
            )
        except asyncio.CancelledError:
            if self._gateways.get(gateway) is mine:  # else it has asked again already
                del self._gateways[gateway]
                self._wake()
            raise
        self._gateways[gateway] = (revision, time.monotonic() + _PRESENT_S)
        return found

    def gateways(self) -> int:
        """Return how many gateways are present, or about to come back, one for each door. Any
        thread."""
        now = time.monotonic()
        present = [name for name, (_, gone) in list(self._gateways.items()) if now <= gone]
        here = len({name.partition(".")[0] for name in present} - {""})
        return max(here, self._before) if now < self._back_by else here

    async def at_gateways(self, revision: int, seconds: float) -> bool:
        """Wait until every gateway that is present has put `revision` in force."""

        return await self.until(lambda: self.everywhere(revision), seconds)

    def everywhere(self, revision: int) -> bool:
        """Say whether every gateway that is present has put `revision` in force. Any thread."""
        now = time.monotonic()
        return all(has >= revision or now > gone for has, gone in list(self._gateways.values()))

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for loop, future in waiting:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
