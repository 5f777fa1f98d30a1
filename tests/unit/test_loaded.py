"""A loaded model: its process may crash or hang, and costs the requests that are to blame."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from polyolo.errors import InvalidValueError, ModelFailedError, ModelRefusedError, NotReadyError
from polyolo.serving.batcher import Capacity
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.loaded import WATCHED, LoadedModel
from polyolo.serving.process import ModelProcess
from polyolo.serving.wire import Answer, Job, Opened, Opening
from polyolo.types import DetectionSettings, ModelRef, VersionSpec
from tests.unit.pictures import encoded

HEADER = read_header(encoded(".jpg"), ImageLimits())

OPENING = Opening(
    ref=ModelRef(name="city", version=3), path="", digest="d", classes=(), family=None, streams=2
)


class Process:
    """Stands in for a model's process: hangs on `hang`, crashes on `crash`, refuses `refuse`."""

    opened = Opened(family="yolox")

    def __init__(self) -> None:
        self.pid = id(self)
        self.saw: list[str] = []
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def answer(self, stream: int, jobs: Sequence[Job], pictures: Sequence[bytes]) -> Any:
        words = [picture.decode() for picture in pictures]
        self.saw += words
        await asyncio.sleep(0)  # no process answers at once
        if "crash" in words:
            self.end("it was ended by signal SIGSEGV")
        if self.over.done() or "hang" in words or "wait" in words:
            how = await self.ended()
            raise ModelFailedError(f"the model's process ended during this request: {how}")
        await asyncio.sleep(0.001)
        answers = [
            Answer(error="invalid-value", detail="no") if word == "refuse" else Answer()
            for word in words
        ]
        return answers, [memoryview(word.upper().encode()) for word in words]

    def end(self, how: str) -> None:
        if not self.over.done():
            self.over.set_result(how)

    async def ended(self) -> str:
        return await asyncio.shield(self.over)

    def kill(self) -> None:
        # As a real one, it ends some time after the signal was sent.
        asyncio.get_running_loop().call_later(0.02, self.end, "it was ended by signal SIGKILL")

    async def close(self) -> None:
        self.closed = True
        self.end("")


class Starts:
    """Starts processes, and remembers them; raises what it is told to, once each."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.processes = [Process()]

    async def __call__(self, opening: Opening) -> ModelProcess:
        assert opening.ref is OPENING.ref
        if self.failures:
            raise self.failures.pop(0)
        self.processes.append(Process())
        return cast("ModelProcess", self.processes[-1])


@asynccontextmanager
async def loaded(
    starts: Starts,
    *,
    stuck_after_s: float = 5.0,
    pauses_s: Sequence[float] = (0, 0, 0, 30),
    measure: Callable[[int], int] = lambda _: 0,
    **more,
) -> AsyncIterator[LoadedModel]:
    model = LoadedModel(
        OPENING,
        VersionSpec(version=3, digest="d", uri=""),
        cast("ModelProcess", starts.processes[0]),
        Capacity(**{"streams": 2, **more}),
        stuck_after_s,
        pauses_s=pauses_s,
        start=starts,
        measure=measure,
    )
    try:
        yield model
    finally:
        model.retire()
        assert model.closing is not None
        await model.closing


async def ask(model: LoadedModel, word: str) -> str:
    job = Job(
        size=len(word),
        header=HEADER,
        settings=DetectionSettings(),
        request_id="r",
        media_type="application/json",
    )
    _, body = await model.answer(job, word.encode())
    return bytes(body).decode()


def asking(model: LoadedModel, *words: str) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(ask(model, word)) for word in words]


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


async def test_answers_and_errors_of_the_process_reach_who_asked():
    """An error that stands in the place of an answer is raised as what it is."""
    starts = Starts()
    async with loaded(starts) as model:
        assert await ask(model, "dog") == "DOG"
        with pytest.raises(InvalidValueError, match="no"):
            await ask(model, "refuse")
        assert model.opened.family == "yolox"
        assert model.pid == starts.processes[0].pid
    assert starts.processes[0].closed
    assert len(starts.processes) == 1


async def test_a_crash_costs_what_was_in_flight_and_nothing_that_waits():
    """The batches under way fail and name the signal; the queue is answered by a new process."""
    starts = Starts()
    async with loaded(starts) as model:
        (beside,) = asking(model, "wait")
        await until(lambda: starts.processes[0].saw == ["wait"])
        crash, *queued = asking(model, "crash", *"abcdefgh")
        for one in (crash, beside):
            with pytest.raises(ModelFailedError, match="SIGSEGV"):
                await one
        assert await asyncio.gather(*queued) == list("ABCDEFGH")
        assert starts.processes[0].saw == ["wait", "crash"]
        assert model.down == ""
        assert model.pid == starts.processes[1].pid


async def test_a_crash_with_nothing_in_flight_costs_nothing():
    """An idle model's process is started again at once, and the next request knows of nothing."""
    starts = Starts()
    async with loaded(starts) as model:
        starts.processes[0].end("it was ended by signal SIGKILL")
        await until(lambda: len(starts.processes) == 2)
        assert await ask(model, "dog") == "DOG"


async def test_a_batch_that_hangs_costs_itself_and_not_what_ran_beside_it():
    """It fails when its time is over; what the other stream had is done again; the queue waits."""
    starts = Starts()
    async with loaded(starts, stuck_after_s=0.2) as model:
        (hung,) = asking(model, "hang")
        await until(lambda: starts.processes[0].saw == ["hang"])
        await asyncio.sleep(0.15)
        innocent, *queued = asking(model, "wait", "a", "b")
        await until(lambda: len(starts.processes) == 2 and "wait" in starts.processes[1].saw)
        with pytest.raises(ModelFailedError, match=r"city:3 gave no answer within 0\.2 s"):
            await hung
        assert starts.processes[0].saw == ["hang", "wait"]
        assert await asyncio.gather(*queued) == ["A", "B"]
        innocent.cancel()
        starts.processes[1].end("")


async def test_batches_that_hang_side_by_side_fail_in_the_same_time():
    """Nobody waits for a second turn of something that took as long as the culprit."""
    starts = Starts()
    async with loaded(starts, stuck_after_s=0.2) as model:
        started = time.monotonic()
        both = await asyncio.gather(*asking(model, "hang", "hang"), return_exceptions=True)
        assert [type(one) for one in both] == [ModelFailedError] * 2
        assert time.monotonic() - started < 0.39
        assert await ask(model, "dog") == "DOG"
        assert len(starts.processes) == 2


async def test_a_model_that_keeps_crashing_is_down_for_a_while_and_says_so():
    """Refused at once, with how long and why; back when the pause is over."""
    starts = Starts()
    async with loaded(starts, pauses_s=(0, 0, 0.5)) as model:
        for number in range(3):
            with pytest.raises(ModelFailedError):
                await ask(model, "crash")
            if number < 2:
                await until(lambda number=number: len(starts.processes) == number + 2)
        await until(lambda: model.down)
        assert model.down == (
            "its process ended 3 times within 600 s: it was ended by signal SIGSEGV"
        )
        with pytest.raises(NotReadyError, match="city:3 is down: its process ended 3") as caught:
            await ask(model, "dog")
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 0.5
        await until(lambda: model.down == "")
        assert await ask(model, "dog") == "DOG"


async def test_what_waits_when_a_model_goes_down_is_refused_then():
    """Requests are held for a restart, not for a long pause."""
    starts = Starts()
    async with loaded(starts, pauses_s=(30,)) as model:
        crash, also, *queued = asking(model, "crash", "crash", "a", "b", "c")
        refused = await asyncio.gather(*queued, return_exceptions=True)
        assert [type(one) for one in refused] == [NotReadyError] * 3
        for one in (crash, also):
            with pytest.raises(ModelFailedError):
                await one


async def test_a_start_that_fails_is_tried_again():
    """No room for a process, a model that is refused now, a defect: each counts as an end."""
    starts = Starts(
        BlockingIOError(11, "Resource temporarily unavailable"),
        ModelRefusedError("its file is not the one that was pushed"),
        ZeroDivisionError(),
    )
    async with loaded(starts, pauses_s=(0, 0, 0.01, 0.2)) as model:
        with pytest.raises(ModelFailedError):
            await ask(model, "crash")
        await until(lambda: model.down)
        assert "could not be started again (ZeroDivisionError)" in model.down
        await until(lambda: model.down == "")
        assert await ask(model, "dog") == "DOG"


async def test_closing_answers_the_queue_first_even_across_a_crash():
    """What was taken on is answered; a model that is retired is leased no more."""
    starts = Starts()
    async with loaded(starts) as model:
        assert model.lease()
        crash, also, *queued = asking(model, "crash", "crash", "a", "b")
        await asyncio.sleep(0)
        model.retire()
        assert not model.lease()
        assert model.closing is None
        assert await asyncio.gather(*queued) == ["A", "B"]
        model.release()
        for one in (crash, also):
            with pytest.raises(ModelFailedError):
                await one
    assert starts.processes[-1].closed
    assert model._keeping.done()


class Leak:
    """What processes keep: each as much as the test says."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def __call__(self, pid: int) -> int:
        return self.bytes.get(pid, 100 * MIB)


MIB = 2**20


async def test_a_process_that_grows_is_replaced_and_no_request_fails():
    """The old one answers until the new one can, finishes what it has, and is closed then."""
    starts, leak = Starts(), Leak()
    async with loaded(starts, measure=leak) as model:
        first = starts.processes[0]
        for _ in range(WATCHED):
            await ask(model, "a")
        leak.bytes[first.pid] = 213 * MIB  # just within half more and 64 MiB
        for _ in range(WATCHED):
            await ask(model, "a")
        assert len(starts.processes) == 1
        leak.bytes[first.pid] = 215 * MIB
        (slow,) = asking(model, "wait")
        for _ in range(WATCHED + 20):
            await ask(model, "a")
        await until(lambda: len(starts.processes) == 2)
        assert await ask(model, "b") == "B"
        assert starts.processes[1].saw[-1] == "b"
        assert not first.closed, "it still has a request"
        first.end("it was ended by signal SIGKILL")  # its own request's end, nobody else's
        with pytest.raises(ModelFailedError):
            await slow
        await until(lambda: first.closed)
        assert model.crashes == 0
        assert model.down == ""
        assert len(starts.processes) == 2
        starts.processes[1].end("it was ended by signal SIGSEGV")
        await until(lambda: len(starts.processes) == 3)
        assert await ask(model, "c") == "C"
        assert model.crashes == 1


async def test_a_replacement_that_cannot_be_started_is_tried_again_later():
    """The one that has grown goes on serving meanwhile."""
    starts, leak = Starts(BlockingIOError(11, "no room")), Leak()
    async with loaded(starts, measure=leak) as model:
        for _ in range(WATCHED):
            await ask(model, "a")
        leak.bytes[starts.processes[0].pid] = 900 * MIB
        for _ in range(2 * WATCHED + 10):
            assert await ask(model, "a") == "A"
        await until(lambda: len(starts.processes) == 2)
        await until(lambda: starts.processes[0].closed)


async def test_closing_ends_a_replacement_under_way():
    """Nothing is left behind."""
    starts, leak = Starts(), Leak()
    async with loaded(starts, measure=leak) as model:
        for _ in range(WATCHED):
            await ask(model, "a")
        leak.bytes[starts.processes[0].pid] = 900 * MIB
        for _ in range(WATCHED):
            await ask(model, "a")
    assert all(one.closed for one in starts.processes)
    assert model._keeping.done()


async def test_who_owns_it_learns_that_a_model_is_down():
    """Once, with crashes and reason set."""
    starts, told = Starts(), []
    async with loaded(starts, pauses_s=(0, 30)) as model:
        model.on_down = lambda one: told.append((one.crashes, one.down))
        for _ in range(2):
            with pytest.raises(ModelFailedError):
                await ask(model, "crash")
            await until(lambda: model._up.is_set() and model._process is starts.processes[-1])
        await until(lambda: told)
        assert told == [
            (2, "its process ended 2 times within 600 s: it was ended by signal SIGSEGV")
        ]
