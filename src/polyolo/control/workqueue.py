"""A queue of names to look at: each at most once, not before its time, by one worker at a time."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable


class WorkQueue:
    """Duplicate puts are merged: the earliest time wins. Any thread may use it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty. clock: monotonic seconds."""
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may hold entries that `_due` has overruled
        self._taken: set[str] = set()
        self._closed = False

    def put(self, name: str, *, after: float = 0.0) -> None:
        """Have `name` looked at in `after` seconds, or earlier if that was already asked for."""
        due = self._clock() + after
        with self._changed:
            if due < self._due.get(name, float("inf")):
                self._due[name] = due
                heapq.heappush(self._heap, (due, name))
                self._changed.notify()

    def take(self) -> str | None:
        """Wait for a name that is due and return it; None once the queue is closed.

        The name is this worker's until `done`; puts of it meanwhile are kept for later.
        """
        with self._changed:
            while not self._closed:
                wait = self._prune()
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, name = heapq.heappop(self._heap)
                del self._due[name]
                self._taken.add(name)
                return name
            return None

    def done(self, name: str) -> None:
        """Give `name` back, for the next worker to take if it was put meanwhile."""
        with self._changed:
            self._taken.discard(name)
            if name in self._due:
                heapq.heappush(self._heap, (self._due[name], name))
                self._changed.notify()

    def close(self) -> None:
        """Have every `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _prune(self) -> float | None:
        """Drop what is overruled or taken; return the seconds until the first one is due."""
        while self._heap:
            due, name = self._heap[0]
            if self._due.get(name) == due and name not in self._taken:
                return due - self._clock()
            heapq.heappop(self._heap)  # `done` puts a taken one back
        return None
