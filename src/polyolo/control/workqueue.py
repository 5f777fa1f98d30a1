"""A queue of names to look at: each at most once, not before its time, by one thread at a time.

And the threads that look, only where this control plane is the one that acts.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterable

from polyolo import telemetry
from polyolo.control.service.lease import DeposedError
from polyolo.control.service.ledger import Ledger
from polyolo.errors import NotReadyError

RETRY_S = 1.0
"""Until the next look after one that failed for a reason of its own (database busy)."""
_UNSURE_S = 0.25
"""Until the next look while it is not sure that this control plane is the one that acts."""


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


class Workers:
    """Threads that take a step for each tenant that was changed, and again. Any thread may use it.

    A Worker (see leader), for who has something to do when tenants change.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        step: Callable[[str], float | None],
        *,
        leads: Callable[[], bool],
        first: Callable[[], Iterable[str]] = tuple,
        threads: int = 1,
    ) -> None:
        """Prepare; nothing happens before `start`.

        name: in the log. step: does what is to be done about a tenant next, and returns the
        seconds until the step after; None: when something is changed. leads: whether this control
        plane is the one that acts; while it is not, steps wait. first: those to begin with, asked
        for once no change is missed any more.
        """
        self._ledger = ledger
        self._step = step
        self._leads = leads
        self._first = first
        self._queue = WorkQueue()
        self._log = telemetry.logger(name)
        names = [f"{name}-{number}" for number in range(threads)]
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for name in names
        ]

    def start(self) -> None:
        """Take up what is waiting, and begin to work."""
        self._ledger.listeners.append(self._changed)
        self.look_at(self._first())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the steps in hand and end the threads; what waits is taken up by the next ones."""
        if self._changed in self._ledger.listeners:
            self._ledger.listeners.remove(self._changed)
        self._queue.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def alive(self) -> bool:
        """Say whether every thread is at work."""
        return all(thread.is_alive() for thread in self._threads)

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        """Take a step for each of these tenants soon."""
        for tenant in tenants:
            self._queue.put(tenant)

    def _changed(self, _: int, tenant: str | None) -> None:
        if tenant is not None:
            self._queue.put(tenant)

    def _work(self) -> None:
        while (tenant := self._queue.take()) is not None:
            again: float | None = RETRY_S
            try:
                again = self._step(tenant) if self._leads() else _UNSURE_S
            except DeposedError as error:  # this thread is about to be told to end
                self._log.info("a step came too late", tenant=tenant, error=str(error))
            except NotReadyError as error:  # the database or the store is away
                self._log.warning("a step has to wait", tenant=tenant, error=error.detail)
            except Exception:  # noqa: BLE001  # one tenant's trouble is no other tenant's
                self._log.exception("a step failed", tenant=tenant)
            finally:
                if again is not None:
                    self._queue.put(tenant, after=again)
                self._queue.done(tenant)
