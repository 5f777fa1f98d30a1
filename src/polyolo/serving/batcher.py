"""Brings requests and worker threads together: one bounded queue, for a CPU and for a GPU.

A worker thread (a stream) takes one batch and carries it from the encoded picture to the encoded
answer, so that nothing heavy runs on the event loop and nothing is handed around. On a CPU many
streams with batches of one are best, on a GPU few streams with large batches: numbers, no code.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polyolo import telemetry
from polyolo.errors import NotReadyError, OverloadedError, PolyoloError

J = TypeVar("J")
R = TypeVar("R")

log = telemetry.logger("batcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much a batcher works on at once, and how much it lets wait."""

    streams: int
    """Worker threads; on a CPU one for each usable core."""
    max_batch: int = 1
    """Jobs a worker takes at once. 1 on a CPU: batching gains nothing there."""
    max_delay_s: float = 0.0
    """Seconds that a worker waits for a batch to fill."""
    max_waiting: int = 128
    """Jobs that may wait; more are refused. 128 is twice a plan's requests in flight."""
    stuck_after_s: float = 10.0
    """Seconds on one batch after which a worker counts as stuck."""


class _Ticket(Generic[J, R]):
    """One job on its way through the queue."""

    __slots__ = ("dropped", "finished", "future", "job", "key", "loop")

    def __init__(self, job: J, key: Hashable, finished: Callable[[], None]) -> None:
        self.job = job
        self.key = key
        self.finished = finished
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[R] = self.loop.create_future()
        self.dropped = False

    def settle(self, outcome: R | Exception) -> None:
        """Bring the outcome to the event loop, and let go of what the job held."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._deliver, outcome)
        self.finished()

    def _deliver(self, outcome: R | Exception) -> None:
        if self.future.done():  # the deadline passed, or the client hung up
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class _Worker:
    __slots__ = ("busy_since", "busy_with", "thread")

    def __init__(self) -> None:
        self.busy_since: float | None = None
        self.busy_with: Hashable = None
        self.thread: threading.Thread


class Batcher(Generic[J, R]):
    """A bounded queue of jobs and the worker threads that do them.

    work: does a batch of jobs of one key in a worker thread and returns one outcome a job, in
    order; an exception as an outcome, or raised, is what the submitter of the job gets.
    """

    def __init__(
        self, work: Callable[[Sequence[J]], Sequence[R | Exception]], capacity: Capacity
    ) -> None:
        self._work = work
        self._capacity = capacity
        self._waiting: deque[_Ticket[J, R]] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._closing = False
        self._seconds_a_job = 0.05  # moving mean; a first guess until something was measured
        self._workers = [_Worker() for _ in range(capacity.streams)]
        for number, worker in enumerate(self._workers):
            worker.thread = threading.Thread(
                target=self._run, args=(worker,), name=f"stream-{number}", daemon=True
            )
            worker.thread.start()

    @property
    def full(self) -> bool:
        """True when a job submitted now would be refused."""
        return len(self._waiting) >= self._capacity.max_waiting

    def waiting(self, of: Callable[[Hashable], bool] | None = None) -> int:
        """Return how many jobs wait; `of` picks those to count by their key."""
        with self._ready:
            return sum(of is None or of(ticket.key) for ticket in self._waiting)

    def overloaded(self) -> OverloadedError:
        """Return the refusal of one more job, saying when the queue should have room again."""
        waiting = len(self._waiting)
        seconds = self._seconds_a_job * waiting / self._capacity.streams
        return OverloadedError(
            f"{waiting} requests are waiting already; slow down, or ask for a larger runtime",
            retry_after=seconds,
        )

    async def submit(self, job: J, *, key: Hashable, finished: Callable[[], None]) -> R:
        """Do one job in a worker thread and return its result. Runs on the event loop.

        key: only jobs of an equal key share a batch; its text names the work if it gets stuck.
        finished: called exactly once, from any thread, when nothing here will touch the job
        again: done, failed, refused or withdrawn. Cancelling takes the job back unless a worker
        has it already. Raises OverloadedError, NotReadyError, and what the work raised.
        """
        ticket: _Ticket[J, R] = _Ticket(job, key, finished)
        try:
            with self._ready:
                if self._closing:
                    raise NotReadyError("this runtime is shutting down")
                if self.full:
                    raise self.overloaded()
                self._waiting.append(ticket)
                if self._capacity.max_batch > 1:
                    self._ready.notify_all()  # the one to take it may be filling its batch
                else:
                    self._ready.notify()
        except PolyoloError:
            finished()
            raise
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self._withdraw(ticket)
            raise

    def stuck(self) -> str:
        """Say which worker cannot answer any more, and on what; empty when all can."""
        now = time.monotonic()
        for worker in self._workers:
            since = worker.busy_since
            if not worker.thread.is_alive():
                return f"{worker.thread.name} has died"
            if since is not None and now - since > self._capacity.stuck_after_s:
                busy = f"{worker.busy_with} for {now - since:.0f} s"
                return f"{worker.thread.name} has been busy with one batch of {busy}"
        return ""

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish what was taken on, then end the threads. Blocks, at most `timeout_s` seconds."""
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        until = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.thread.join(max(0.0, until - time.monotonic()))

    def _withdraw(self, ticket: _Ticket[J, R]) -> None:
        with self._ready:
            ticket.dropped = True
            try:
                self._waiting.remove(ticket)
            except ValueError:
                return  # a worker has it: that one finishes it
        ticket.finished()

    def _run(self, worker: _Worker) -> None:
        while batch := self._take():
            worker.busy_with = batch[0].key
            worker.busy_since = started = time.monotonic()
            try:
                self._serve(batch)
            except Exception:
                log.exception("a batch could not be settled")
            worker.busy_since = worker.busy_with = None
            seconds = (time.monotonic() - started) / len(batch)
            self._seconds_a_job += 0.1 * (seconds - self._seconds_a_job)
            del batch  # or an idle worker would hold its last pictures

    def _take(self) -> list[_Ticket[J, R]]:
        """Wait for the next batch; empty when closing and nothing is left."""
        with self._ready:
            while not self._waiting:
                if self._closing:
                    return []
                self._ready.wait()
            batch = [self._waiting.popleft()]
            if self._capacity.max_batch > 1:
                self._fill(batch)
            return batch

    def _fill(self, batch: list[_Ticket[J, R]]) -> None:
        until = time.monotonic() + self._capacity.max_delay_s
        key = batch[0].key
        while len(batch) < self._capacity.max_batch:
            alike = next((ticket for ticket in self._waiting if ticket.key == key), None)
            if alike is not None:
                self._waiting.remove(alike)
                batch.append(alike)
                continue
            left = until - time.monotonic()
            if left <= 0 or self._closing:
                return
            self._ready.wait(left)

    def _serve(self, batch: list[_Ticket[J, R]]) -> None:
        """Do a batch and settle every ticket of it, whatever happens."""
        for ticket in batch:
            if ticket.dropped:
                ticket.finished()
        batch = [ticket for ticket in batch if not ticket.dropped]
        if not batch:
            return
        outcomes: Sequence[R | Exception]
        try:
            outcomes = self._work([ticket.job for ticket in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes for {len(batch)} jobs")
        except BaseException as error:  # a worker survives anything
            if len(batch) > 1:  # one of them is to blame: the others get their answers
                for ticket in batch:
                    self._serve([ticket])
                return
            if isinstance(error, Exception):
                outcomes = [error]
            else:
                log.exception("a worker was hit by something that is not an error")
                outcomes = [PolyoloError(f"the work ended with {type(error).__name__}")]
        for ticket, outcome in zip(batch, outcomes, strict=True):  # lengths were compared
            ticket.settle(outcome)
