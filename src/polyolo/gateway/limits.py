"""Bounds what one tenant may have inside the gateway, so that none can fill it up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polyolo.errors import OverloadedError, PolyoloError


class Bound:
    """Counts what each tenant has inside, and refuses more than a limit."""

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}

    def inside(self, tenant: str) -> int:
        """Return how many the tenant has inside now."""
        return self._inside.get(tenant, 0)

    @contextmanager
    def admit(
        self,
        tenant: str,
        limit: int,
        refusal: PolyoloError,
        make_room: Callable[[str], bool] = lambda _: False,
    ) -> Iterator[None]:
        """Hold a place for as long as the context lasts; raise `refusal` if all are taken.

        make_room: has another one of the tenant's go, if it can; its place is taken at once.
        """
        taken = self._inside.get(tenant, 0)
        if taken >= limit and not make_room(tenant):
            raise refusal
        self._inside[tenant] = taken + 1
        try:
            yield
        finally:
            left = self._inside[tenant] - 1
            if left:
                self._inside[tenant] = left
            else:
                del self._inside[tenant]  # an idle tenant costs nothing


class Memory:
    """Counts the bytes that each tenant's requests hold; who has too many waits. On the event
    loop's thread.

    When all of the memory is taken, those wait who hold more than an equal share of it.
    """

    def __init__(self, each: int, whole: int) -> None:
        """Let each tenant hold so many bytes, and all of them together."""
        self._each = each
        self._whole = whole
        self._held: dict[str, int] = {}
        self._sum = 0
        self._waiting: dict[str, deque[asyncio.Event]] = {}

    def held(self, tenant: str) -> int:
        """Return how many bytes the tenant holds now."""
        return self._held.get(tenant, 0)

    async def reserve(self, tenant: str, size: int) -> None:
        """Take so many bytes more as soon as there is room, in the order of asking."""
        if tenant in self._waiting or not self._fits(tenant, size):
            queue = self._waiting.setdefault(tenant, deque())
            place = asyncio.Event()
            queue.append(place)
            try:
                while queue[0] is not place or not self._fits(tenant, size):
                    place.clear()
                    await place.wait()
            finally:
                queue.remove(place)
                if not queue:
                    del self._waiting[tenant]
                self._wake(tenant)  # whoever is first now
        self._take(tenant, size)

    def grow(self, tenant: str, size: int) -> None:
        """Take so many bytes more, now. Raises OverloadedError if there is no room."""
        if not self._fits(tenant, size):
            raise OverloadedError(
                "this tenant's requests hold as many bytes as they may; come again shortly"
            )
        self._take(tenant, size)

    def shrink(self, tenant: str, size: int) -> None:
        """Give so many bytes back."""
        self._sum -= size
        left = self._held.get(tenant, 0) - size
        if left > 0:
            self._held[tenant] = left
        else:
            self._held.pop(tenant, None)
        for waiting in list(self._waiting):
            self._wake(waiting)

    def _fits(self, tenant: str, size: int) -> bool:
        held = self._held.get(tenant, 0) + size
        holders = len(self._held) + (tenant not in self._held)
        return held <= self._each and (
            self._sum + size <= self._whole or held * holders <= self._whole
        )

    def _take(self, tenant: str, size: int) -> None:
        self._held[tenant] = self._held.get(tenant, 0) + size
        self._sum += size

    def _wake(self, tenant: str) -> None:
        queue = self._waiting.get(tenant)
        if queue:
            queue[0].set()
