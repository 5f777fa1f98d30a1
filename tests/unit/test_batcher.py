"""The batcher: nothing is lost, nothing is done twice, one job's error is one job's error."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from polyolo.errors import InvalidValueError, NotReadyError, OverloadedError, PolyoloError
from polyolo.serving.batcher import Batcher, Capacity, Work


class Gate:
    """Work that waits until it is let through, and remembers its batches and their streams."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.batches: list[list[str]] = []
        self.streams: list[int] = []

    async def __call__(self, stream: int, jobs: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(jobs))
        self.streams.append(stream)
        await self.open.wait()
        return [job.upper() for job in jobs]


async def echo(stream: int, jobs: Sequence[str]) -> list[str | Exception]:
    return list(jobs)


@asynccontextmanager
async def batcher(work: Work, **capacity) -> AsyncIterator[Batcher[str, str]]:
    made: Batcher[str, str] = Batcher(work, Capacity(**{"streams": 1, **capacity}))
    try:
        yield made
    finally:
        if isinstance(work, Gate):
            work.open.set()
        await made.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


async def asked(queue: Batcher[str, str], *jobs: str) -> list[asyncio.Task[str]]:
    """Submit jobs and return once they wait."""
    tasks = [asyncio.create_task(queue.submit(job)) for job in jobs]
    await asyncio.sleep(0)
    return tasks


async def test_a_job_gets_its_own_result_or_error():
    """A result comes back, an error as an outcome is raised, and so is one that is raised."""

    async def work(stream: int, jobs: Sequence[str]) -> list[str | Exception]:
        (job,) = jobs
        if job == "raise":
            raise ZeroDivisionError
        return [InvalidValueError("no") if job == "refuse" else job.upper()]

    async with batcher(work) as queue:
        assert await queue.submit("a") == "A"
        with pytest.raises(InvalidValueError):
            await queue.submit("refuse")
        with pytest.raises(ZeroDivisionError):
            await queue.submit("raise")
        assert await queue.submit("b") == "B"


async def test_one_bad_job_costs_no_other_its_answer():
    """When a whole batch fails, each job is tried alone and only the culprit fails."""

    async def work(stream: int, jobs: Sequence[str]) -> list[str | Exception]:
        if "bad" in jobs:
            raise RuntimeError("the graph failed")
        return list(jobs)

    async with batcher(work, max_batch=4, max_delay_s=0.2) as queue:
        answers = await asyncio.gather(
            *await asked(queue, "a", "bad", "b", "c"), return_exceptions=True
        )
        assert answers[0::2] == ["a", "b"]
        assert answers[3] == "c"
        assert isinstance(answers[1], RuntimeError)


async def test_jobs_go_in_their_order_and_no_more_than_the_maximum_at_once():
    """First come, first served, in batches as large as allowed."""
    gate = Gate()
    async with batcher(gate, max_batch=3) as queue:
        first = await asked(queue, "first")
        await until(lambda: gate.batches == [["first"]])
        rest = await asked(queue, *"abcdefgh")
        await until(lambda: queue.waiting == 8)
        gate.open.set()
        await asyncio.gather(*first, *rest)
    assert gate.batches[1:] == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]


async def test_a_batch_waits_for_company_as_long_as_allowed():
    """A job alone goes after max_delay; one that comes within it goes along, on the same stream."""
    gate = Gate()
    gate.open.set()
    async with batcher(gate, streams=3, max_batch=2, max_delay_s=5) as queue:
        first = await asked(queue, "a")
        await until(lambda: queue.waiting == 0)
        started = time.monotonic()
        await queue.submit("b")
        await first[0]
        assert time.monotonic() - started < 2, "a full batch need not wait for the delay's end"
    assert gate.batches == [["a", "b"]]
    async with batcher(gate, max_batch=2, max_delay_s=0.05) as queue:
        assert await queue.submit("alone") == "ALONE"


async def test_overload_is_refused_at_once_with_an_honest_wait():
    """Beyond the bound a job is refused; Retry-After is the queue's length in measured time."""
    gate = Gate()
    async with batcher(gate, max_waiting=2) as queue:
        queue._seconds_a_job = 3.0
        running = await asked(queue, "a")
        await until(lambda: gate.batches == [["a"]])
        queue.refuse_if_full()
        waiting = await asked(queue, "b", "c")
        await until(lambda: queue.waiting == 2)
        with pytest.raises(OverloadedError) as caught:
            queue.refuse_if_full()
        assert caught.value.retry_after == pytest.approx(6.0)
        with pytest.raises(OverloadedError):
            await queue.submit("d")
        gate.open.set()
        assert await asyncio.gather(*running, *waiting) == ["A", "B", "C"]
    assert gate.batches == [["a"], ["b"], ["c"]]


async def test_the_measured_time_follows_the_work():
    """The estimate moves from its first guess towards what a job really takes."""
    async with batcher(echo) as queue:
        for _ in range(60):
            await queue.submit("a")
        assert queue._seconds_a_job < 0.005


async def test_a_job_taken_back_before_its_turn_is_never_done():
    """Cancelling frees the place in the queue at once."""
    gate = Gate()
    async with batcher(gate) as queue:
        running = await asked(queue, "a")
        await until(lambda: gate.batches == [["a"]])
        (waiting,) = await asked(queue, "b")
        await until(lambda: queue.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert queue.waiting == 0
        gate.open.set()
        await running[0]
    assert gate.batches == [["a"]]


async def test_a_job_taken_back_while_its_batch_fills_is_not_done():
    """A stream has it, but has not begun: the others of the batch go without it."""
    gate = Gate()
    gate.open.set()
    async with batcher(gate, max_batch=3, max_delay_s=5) as queue:
        tasks = await asked(queue, "a", "b")
        await until(lambda: queue.waiting == 0)
        tasks[0].cancel()
        await queue.submit("c")
        assert await tasks[1] == "B"
    assert gate.batches == [["b", "c"]]


async def test_a_job_taken_back_while_it_runs_keeps_its_stream_until_it_is_done():
    """The stream is in step: the next job waits for the outcome that nobody wants any more."""
    gate = Gate()
    async with batcher(gate) as queue:
        (running,) = await asked(queue, "a")
        await until(lambda: gate.batches == [["a"]])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        (after,) = await asked(queue, "b")
        await until(lambda: queue.waiting == 1)
        assert gate.batches == [["a"]]
        gate.open.set()
        assert await after == "B"


async def test_a_stream_survives_work_that_miscounts():
    """Too few or too many outcomes are an error of the batch; the next job is served."""

    async def work(stream: int, jobs: Sequence[str]) -> list[str | Exception]:
        return {"few": [], "many": ["x", "y"]}.get(jobs[0], list(jobs))

    async with batcher(work) as queue:
        for job in ("few", "many"):
            with pytest.raises(PolyoloError):
                await queue.submit(job)
        assert await queue.submit("a") == "a"


async def test_streams_work_side_by_side():
    """Two streams have two jobs in hand at once."""
    gate = Gate()
    async with batcher(gate, streams=2) as queue:
        tasks = await asked(queue, "a", "b")
        await until(lambda: sorted(gate.batches) == [["a"], ["b"]])
        assert sorted(gate.streams) == [0, 1]
        gate.open.set()
        await asyncio.gather(*tasks)


async def test_nothing_is_lost_or_done_twice_in_a_thousand_jobs():
    """With jobs coming, failing and being taken back in any order, each is answered once."""
    done: list[str] = []

    async def work(stream: int, jobs: Sequence[str]) -> list[str | Exception]:
        await asyncio.sleep(0.0001 * (len(done) % 3))
        done.extend(jobs)
        return [ValueError(job) if job.endswith("7") else job for job in jobs]

    async with batcher(work, streams=3, max_batch=4, max_delay_s=0.001, max_waiting=5000) as queue:
        tasks = []
        for number in range(1000):
            tasks.append(asyncio.create_task(queue.submit(str(number))))
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number % 50 == 3:
                tasks[-1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(set(done)) == len(done)
    for number, answer in enumerate(answers):
        if number % 50 == 3:
            assert isinstance(answer, asyncio.CancelledError)
        elif number % 10 == 7:
            assert isinstance(answer, ValueError)
        else:
            assert answer == str(number)


async def test_closing_finishes_what_was_taken_on_and_takes_nothing_more():
    """Draining answers every job in the queue; a later one is refused, to be tried elsewhere."""
    gate = Gate()
    async with batcher(gate) as queue:
        tasks = await asked(queue, "a", "b")
        await until(lambda: gate.batches == [["a"]] and queue.waiting == 1)
        closing = asyncio.create_task(queue.close())
        await until(lambda: queue._closing)
        with pytest.raises(NotReadyError):
            await queue.submit("c")
        gate.open.set()
        assert await asyncio.gather(*tasks) == ["A", "B"]
        await closing
        assert all(stream.done() for stream in queue._streams)


async def test_closing_does_not_wait_for_company():
    """A batch that waits to be filled goes as it is."""
    gate = Gate()
    gate.open.set()
    started = time.monotonic()
    async with batcher(gate, streams=2, max_batch=8, max_delay_s=30) as queue:
        tasks = await asked(queue, "a")
        await until(lambda: queue.waiting == 0)
    assert await tasks[0] == "A"
    assert time.monotonic() - started < 5
