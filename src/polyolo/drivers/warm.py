"""Runtimes that are nobody's yet, with everything imported: given to a tenant, a start is short.

Each is given once, for good, and never comes back. They are started one at a time while nobody
needs a start, so that they cost those who wait nothing.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from polyolo.drivers.rundir import RunDirectory
from polyolo.sandbox import kernel

_QUIET_S = 1.0
"""After a start, before another warm process is started: whoever waits for a start comes first."""
_UNLUCKY_S = 10.0
"""After a warm process that did not start, or ended by itself."""


class WarmPool:
    """Up to `size` warm processes, the oldest given first. Any thread may use it."""

    def __init__(
        self,
        size: int,
        start: Callable[[int], RunDirectory],
        answers: Callable[[RunDirectory], bool],
    ) -> None:
        """Begin with none.

        start: starts the one of a number, none twice, and returns its directory. answers: whether
        one can be given now.
        """
        self._size = size
        self._start = start
        self._answers = answers
        self._ready: list[RunDirectory] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._refill_at = 0.0

    def started(self) -> None:
        """Note that something has been started: not now, then."""
        self._refill_at = time.monotonic() + _QUIET_S

    def take(self) -> RunDirectory | None:
        """Return the directory of one that can be given, the caller's from now on; None: none."""
        with self._lock:
            for directory in self._ready:
                if self._answers(directory):
                    self._ready.remove(directory)
                    return directory
        return None

    def keep(self) -> None:
        """Start one where one is missing, unless something else has been started just now."""
        with self._lock:
            for directory in [one for one in self._ready if not _runs(one)]:
                self._ready.remove(directory)
                directory.delete()
                self._refill_at = time.monotonic() + _UNLUCKY_S
            if len(self._ready) >= self._size or time.monotonic() < self._refill_at:
                return
            self._refill_at = time.monotonic() + _UNLUCKY_S
            with suppress(OSError):  # it is only ahead of time; who needs a start is told why not
                self._ready.append(self._start(next(self._numbers)))
                self._refill_at = time.monotonic() + _QUIET_S

    def close(self) -> None:
        """Give and start none any more. Those that are there are left to the caller."""
        with self._lock:
            self._size = 0
            self._ready.clear()


def _runs(directory: RunDirectory) -> bool:
    process = directory.process()
    return process is not None and kernel.runs(process)
