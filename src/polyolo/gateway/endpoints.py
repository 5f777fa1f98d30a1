"""Which of a runtime's copies gets a request: the one that has the fewest, of those in reach."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from polyolo.errors import NotReadyError

_LOST_S = 0.5
"""For so long a copy that was out of reach gets nothing, unless there is news of it."""


class OutOfReachError(NotReadyError):
    """Nobody answered at an endpoint, and the client has seen nothing yet: ask another one.

    begun: whether somebody there may have got the request, or some of it.
    """

    def __init__(self, *, begun: bool) -> None:
        super().__init__("what should answer is out of reach; come again")
        self.begun = begun


class Endpoints:
    """What this gateway knows of endpoints besides the snapshot. On the loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy: Counter[str] = Counter()
        self._lost: dict[str, float] = {}

    def least_busy(self, endpoints: Sequence[str]) -> str | None:
        """Return the one to ask; None if all are out of reach."""
        now = self._clock()
        here = [one for one in endpoints if now - self._lost.get(one, -_LOST_S) >= _LOST_S]
        return min(here, key=lambda one: self._busy[one], default=None)

    @contextmanager
    def asking(self, endpoint: str) -> Iterator[None]:
        """Count a request at an endpoint while the context lasts."""
        self._busy[endpoint] += 1
        try:
            yield
        finally:
            self._busy[endpoint] -= 1
            if not self._busy[endpoint]:
                del self._busy[endpoint]

    def lost(self, endpoint: str) -> None:
        """Note that an endpoint was out of reach."""
        now = self._clock()
        self._lost = {one: at for one, at in self._lost.items() if now - at < _LOST_S}
        self._lost[endpoint] = now
