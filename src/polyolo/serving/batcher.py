"""Brings requests and streams together: one bounded queue, for a CPU and for a GPU.

A stream carries one batch at a time to where the work is done, which is never the event loop. On
a CPU many streams with batches of one are best, on a GPU few streams with large batches: numbers,
no code. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from polyolo.errors import NotReadyError, OverloadedError, PolyoloError

J = TypeVar("J")
R = TypeVar("R")

Work = Callable[[int, Sequence[J]], Awaitable[Sequence[R | Exception]]]
"""Does a batch on a stream (its number) and returns one outcome a job, in order; an exception as
an outcome, or raised, is what the submitter of the job gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much a batcher works on at once, and how much it lets wait."""

    streams: int
    """Batches under way at once; on a CPU one for each usable core."""
    max_batch: int = 1
    """Jobs in a batch. 1 on a CPU: batching gains nothing there."""
    max_delay_s: float = 0.0
    """Seconds that a stream waits for a batch to fill."""
    max_waiting: int = 128
    """Jobs that may wait; more are refused. 128 is twice a plan's requests in flight."""


class _Ticket(Generic[J, R]):
    """One job on its way through the queue."""

    __slots__ = ("future", "job")

    def __init__(self, job: J) -> None:
        self.job = job
        self.future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: R | Exception) -> None:
        if self.future.done():  # the deadline passed, or the client hung up
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Batcher(Generic[J, R]):
    """A bounded queue of jobs and the streams that carry them."""

    def __init__(self, work: Work[J, R], capacity: Capacity) -> None:
        self._work = work
        self._capacity = capacity
        self._waiting: deque[_Ticket[J, R]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()  # streams with nothing to do
        self._closing = False
        self._seconds_a_job = 0.05  # moving mean; a first guess until something was measured
        self._streams = [asyncio.create_task(self._run(n)) for n in range(capacity.streams)]

    @property
    def waiting(self) -> int:
        """Jobs that no stream has taken yet."""
        return len(self._waiting)

    def refuse_if_full(self) -> None:
        """Raise OverloadedError when a job submitted now would be refused."""
        waiting = len(self._waiting)
        if waiting >= self._capacity.max_waiting:
            raise OverloadedError(
                f"{waiting} requests are waiting already; slow down, or ask for a larger runtime",
                retry_after=self._seconds_a_job * waiting / self._capacity.streams,
            )

    async def submit(self, job: J) -> R:
        """Have one job done and return its result.

        Cancelling takes the job back unless a stream has it already. Raises OverloadedError,
        NotReadyError, and what the work raised.
        """
        if self._closing:
            raise NotReadyError("this model is being unloaded; ask again")
        self.refuse_if_full()
        ticket: _Ticket[J, R] = _Ticket(job)
        self._waiting.append(ticket)
        self._wake()
        try:
            return await ticket.future
        except asyncio.CancelledError:
            with suppress(ValueError):  # a stream has it: its outcome will find nobody
                self._waiting.remove(ticket)
            raise

    async def close(self) -> None:
        """Finish what was taken on, then end the streams."""
        self._closing = True
        while self._idle:
            self._wake()
        await asyncio.gather(*self._streams)

    def _wake(self) -> None:
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return

    async def _run(self, stream: int) -> None:
        while batch := await self._take():
            started = time.monotonic()
            await self._do(stream, batch)
            seconds = (time.monotonic() - started) / len(batch)
            self._seconds_a_job += 0.1 * (seconds - self._seconds_a_job)
            del batch  # or an idle stream would hold its last pictures

    async def _take(self) -> list[_Ticket[J, R]]:
        """Wait for the next batch; empty when closing and nothing is left."""
        while not self._waiting:
            if self._closing:
                return []
            await self._something()
        batch = [self._waiting.popleft()]
        until = time.monotonic() + self._capacity.max_delay_s
        while len(batch) < self._capacity.max_batch:
            if self._waiting:
                batch.append(self._waiting.popleft())
                continue
            left = until - time.monotonic()
            if left <= 0 or self._closing:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._something(first=True)
        return batch

    async def _something(self, *, first: bool = False) -> None:
        """Wait to be woken. first: before the other streams, to fill a batch that was begun."""
        idle = asyncio.get_running_loop().create_future()
        if first:
            self._idle.appendleft(idle)
        else:
            self._idle.append(idle)
        await idle

    async def _do(self, stream: int, batch: list[_Ticket[J, R]]) -> None:
        """Do a batch and settle every ticket of it, whatever happens."""
        batch = [ticket for ticket in batch if not ticket.future.done()]  # or nobody waits for it
        if not batch:
            return
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await self._work(stream, [ticket.job for ticket in batch])
            if len(outcomes) != len(batch):
                raise PolyoloError("the work gave not one outcome for each job")
        except Exception as error:  # noqa: BLE001  # brought to who submitted the job
            if len(batch) > 1:  # one of them is to blame: the others get their answers
                for ticket in batch:
                    await self._do(stream, [ticket])
                return
            outcomes = [error]
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.settle(outcome)
