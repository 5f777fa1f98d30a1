"""The batcher: nothing is lost, nothing is done twice, one job's error is one job's error."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from polyolo.errors import InvalidValueError, NotReadyError, OverloadedError, PolyoloError
from polyolo.serving.batcher import Batcher, Capacity


class Gate:
    """Work that waits until it is let through, and remembers its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, jobs: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(jobs))
        assert self.open.wait(10)
        return [job.upper() for job in jobs]


@asynccontextmanager
async def batcher(
    work: Callable[[Sequence[str]], Sequence[str | Exception]], **capacity
) -> AsyncIterator[Batcher[str, str]]:
    made: Batcher[str, str] = Batcher(work, Capacity(**{"streams": 1, **capacity}))
    try:
        yield made
    finally:
        if isinstance(work, Gate):
            work.open.set()
        await asyncio.to_thread(made.close)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


def nothing() -> None:
    """Be told that a job is finished, and do nothing about it."""


class Finished:
    """Counts how often a job was said to be finished."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def test_a_job_gets_its_own_result_or_error():
    """A result comes back, an error as an outcome is raised, and so is one that is raised."""

    def work(jobs: Sequence[str]) -> list[str | Exception]:
        (job,) = jobs
        if job == "raise":
            raise ZeroDivisionError
        return [InvalidValueError("no") if job == "refuse" else job.upper()]

    async with batcher(work) as queue:
        finished = Finished()
        assert await queue.submit("a", key=1, finished=finished) == "A"
        with pytest.raises(InvalidValueError):
            await queue.submit("refuse", key=1, finished=finished)
        with pytest.raises(ZeroDivisionError):
            await queue.submit("raise", key=1, finished=finished)
        assert finished.count == 3


async def test_one_bad_job_costs_no_other_its_answer():
    """When a whole batch fails, each job is tried alone and only the culprit fails."""

    def work(jobs: Sequence[str]) -> list[str | Exception]:
        if "bad" in jobs:
            raise RuntimeError("the graph failed")
        return list(jobs)

    async with batcher(work, max_batch=4, max_delay_s=0.2) as queue:
        asked = [queue.submit(job, key=1, finished=nothing) for job in ("a", "bad", "b", "c")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0::2] == ["a", "b"]
        assert answers[3] == "c"
        assert isinstance(answers[1], RuntimeError)


async def test_a_batch_holds_one_key_and_no_more_than_the_maximum():
    """Jobs of different models never share a run; the queue's order stays within each."""
    gate = Gate()
    async with batcher(gate, max_batch=3) as queue:
        first = asyncio.create_task(queue.submit("first", key="x", finished=nothing))
        await until(lambda: gate.batches == [["first"]])
        rest = [
            asyncio.create_task(queue.submit(f"{key}{number}", key=key, finished=nothing))
            for number in range(4)
            for key in "pq"
        ]
        await until(lambda: queue.waiting() == 8)
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert gate.batches[1:] == [["p0", "p1", "p2"], ["q0", "q1", "q2"], ["p3"], ["q3"]]


async def test_a_batch_waits_for_company_as_long_as_allowed():
    """A job alone goes after max_delay; one that comes within it goes along."""
    gate = Gate()
    gate.open.set()
    async with batcher(gate, max_batch=2, max_delay_s=5) as queue:
        first = asyncio.create_task(queue.submit("a", key=1, finished=nothing))
        await asyncio.sleep(0.02)
        started = time.monotonic()
        await queue.submit("b", key=1, finished=nothing)
        await first
        assert time.monotonic() - started < 2, "a full batch need not wait for the delay's end"
    assert gate.batches == [["a", "b"]]


async def test_overload_is_refused_at_once_with_an_honest_wait():
    """Beyond the bound a job is refused; Retry-After is the queue's length in measured time."""
    gate = Gate()
    async with batcher(gate, max_waiting=2) as queue:
        queue._seconds_a_job = 3.0
        running = asyncio.create_task(queue.submit("a", key=1, finished=nothing))
        await until(lambda: gate.batches == [["a"]])
        waiting = [
            asyncio.create_task(queue.submit(job, key=1, finished=nothing)) for job in ("b", "c")
        ]
        await until(lambda: queue.waiting() == 2)
        assert queue.full
        finished = Finished()
        with pytest.raises(OverloadedError) as caught:
            await queue.submit("d", key=1, finished=finished)
        assert caught.value.retry_after == pytest.approx(6.0)
        assert finished.count == 1
        gate.open.set()
        assert await asyncio.gather(running, *waiting) == ["A", "B", "C"]


async def test_the_measured_time_follows_the_work():
    """The estimate moves from its first guess towards what a job really takes."""
    async with batcher(lambda jobs: list(jobs)) as queue:
        for _ in range(60):
            await queue.submit("a", key=1, finished=nothing)
        await until(lambda: queue._seconds_a_job < 0.005)


async def test_a_job_taken_back_before_its_turn_is_never_done():
    """Cancelling frees the place in the queue at once and finishes the job once."""
    gate = Gate()
    async with batcher(gate) as queue:
        running = asyncio.create_task(queue.submit("a", key=1, finished=nothing))
        await until(lambda: gate.batches == [["a"]])
        finished = Finished()
        waiting = asyncio.create_task(queue.submit("b", key=1, finished=finished))
        await until(lambda: queue.waiting() == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (queue.waiting(), finished.count) == (0, 1)
        gate.open.set()
        await running
    assert gate.batches == [["a"]]
    assert finished.count == 1


async def test_what_a_running_job_holds_is_kept_until_the_worker_is_done():
    """Cancelling a job that runs must not close the model under it."""
    gate = Gate()
    async with batcher(gate) as queue:
        finished = Finished()
        running = asyncio.create_task(queue.submit("a", key=1, finished=finished))
        await until(lambda: gate.batches == [["a"]])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert finished.count == 0
        gate.open.set()
        await until(lambda: finished.count == 1)


async def test_a_worker_survives_anything():
    """SystemExit out of foreign code, and work that miscounts, cost one job each and no thread."""

    def work(jobs: Sequence[str]) -> list[str | Exception]:
        if jobs == ["exit"]:
            raise SystemExit(3)
        return [] if jobs == ["miscount"] else list(jobs)

    async with batcher(work) as queue:
        for job in ("exit", "miscount"):
            with pytest.raises((PolyoloError, RuntimeError)):
                await queue.submit(job, key=1, finished=nothing)
        assert await queue.submit("a", key=1, finished=nothing) == "a"
        assert queue.stuck() == ""


async def test_a_stuck_worker_is_named_with_its_model():
    """A batch that takes longer than allowed makes the batcher say on what it hangs."""
    gate = Gate()
    async with batcher(gate, stuck_after_s=0.05) as queue:
        running = asyncio.create_task(queue.submit("a", key="city:3", finished=nothing))
        await until(lambda: "city:3" in queue.stuck())
        gate.open.set()
        await running
        await until(lambda: queue.stuck() == "")


async def test_streams_work_side_by_side():
    """Two streams have two jobs in hand at once."""
    gate = Gate()
    async with batcher(gate, streams=2) as queue:
        asked = [
            asyncio.create_task(queue.submit(job, key=1, finished=nothing)) for job in ("a", "b")
        ]
        await until(lambda: sorted(gate.batches) == [["a"], ["b"]])
        gate.open.set()
        await asyncio.gather(*asked)


async def test_closing_finishes_what_was_taken_on_and_takes_nothing_more():
    """Draining answers every job in the queue; a later one is refused, to be tried elsewhere."""
    gate = Gate()
    async with batcher(gate) as queue:
        asked = [
            asyncio.create_task(queue.submit(job, key=1, finished=nothing)) for job in ("a", "b")
        ]
        await until(lambda: gate.batches == [["a"]] and queue.waiting() == 1)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        await until(lambda: queue._closing)
        finished = Finished()
        with pytest.raises(NotReadyError):
            await queue.submit("c", key=1, finished=finished)
        assert finished.count == 1
        gate.open.set()
        assert await asyncio.gather(*asked) == ["A", "B"]
        await closing
        assert not any(worker.thread.is_alive() for worker in queue._workers)
