"""A model version in service: its queue, its process, and the requests that hold it.

Keeps the process alive: one that crashes, or hangs on a batch, costs the requests that it had and
is started again; one that keeps growing is replaced by a fresh one, at no request's cost.
Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from polyolo import telemetry
from polyolo.errors import ModelFailedError, NotReadyError, PolyoloError, by_code
from polyolo.serving import memory, process
from polyolo.serving.batcher import Batcher, Capacity
from polyolo.serving.process import ModelProcess
from polyolo.serving.wire import Answer, Job, Opening
from polyolo.types import VersionSpec

Outcome = tuple[Answer, bytes | memoryview]
"""An answer, and its encoded body."""

Start = Callable[[Opening], Awaitable[ModelProcess]]

PAUSES_S = (0.0, 0.25, 0.5, 1.0, 30.0)
"""Seconds before a crashed process is started again, by the crashes within `_WINDOW_S`: a model
that crashes five times in ten minutes is a broken model, and should not cost the others its
starts. During the last pause it is down: its requests are refused."""
_WINDOW_S = 600.0
WATCHED = 500
"""Pictures between two looks at the memory of a model's process. The first look comes when its
buffers have grown to what they need."""
_GROWN = 1.5
"""A process that keeps more than so many times what it kept at the first look, and more than
`_GROWN_BYTES` beside, is taken for one that leaks."""
_GROWN_BYTES = 64 * 2**20

log = telemetry.logger("loaded")


class LoadedModel:
    """An open model, closed once it is retired and its last lease is released."""

    def __init__(
        self,
        opening: Opening,
        version: VersionSpec,
        running: ModelProcess,
        capacity: Capacity,
        stuck_after_s: float,
        *,
        pauses_s: Sequence[float] = PAUSES_S,
        start: Start = process.start,
        measure: Callable[[int], int] = memory.own,
    ) -> None:
        """Serve with a process that has opened the model.

        stuck_after_s: seconds on a batch after which the process counts as hung. start: starts
        another one. measure: bytes that the process with an id keeps for itself.
        """
        self.ref = opening.ref
        self.version = version
        self.opened = running.opened
        self.down = ""
        """Why it cannot answer at the moment, for a person to read; empty when it can."""
        self.crashes = 0
        """Times that its process ended, or could not be started again."""
        self.last_end = ""
        """How it ended the last time, for a person to read."""
        self.on_down: Callable[[LoadedModel], None] = lambda _: None
        """Called when `down` is set."""
        self.weight = measure(running.pid)
        """Bytes that its process kept for itself when it had opened the model."""
        self.queue: Batcher[tuple[Job, bytes], Outcome] = Batcher(self._work, capacity)
        # As it was chosen then: a restart measures nothing again.
        self._opening = replace(
            opening,
            engine=self.opened.engine,
            arithmetic=self.opened.precision,
            gently=False,  # requests wait for it
        )
        self._process = running
        self._stuck_after_s = stuck_after_s
        self._pauses_s = pauses_s
        self._start = start
        self._up = asyncio.Event()
        """Set while `_process` is believed to answer, and while the model is down."""
        self._up.set()
        self._down_until = 0.0
        self._hung: ModelProcess | None = None
        self._measure = measure
        self._unwatched = 0
        self._usual_bytes = 0
        """What the process kept at the first look; 0 before it."""
        self._batches: Counter[ModelProcess] = Counter()
        """Batches under way in each process."""
        self._batch_over = asyncio.Event()
        self._replacing: asyncio.Task[None] | None = None
        self._keeping = asyncio.create_task(self._keep())
        self._leases = 0
        self._retired = False
        self.closing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id of the model's process."""
        return self._process.pid

    async def answer(self, job: Job, picture: bytes) -> Outcome:
        """Have one picture looked at. Raises the error that takes the answer's place."""
        self._refuse_if_down()
        return await self.queue.submit((job, picture))

    @property
    def leased(self) -> bool:
        """Whether any request holds it."""
        return self._leases > 0

    def lease(self) -> bool:
        """Keep the model open until `release`; False when it is retired already."""
        if self._retired:
            return False
        self._leases += 1
        return True

    def release(self) -> None:
        """Give one lease back."""
        self._leases -= 1
        self._close_if_unused()

    def retire(self) -> None:
        """Close the model now, or with its last lease. `closing` is the task that does it."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and self._leases == 0 and self.closing is None:
            self.closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        await self.queue.close()
        tasks = [self._keeping, *([self._replacing] if self._replacing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._process.close()

    def _refuse_if_down(self) -> None:
        if self.down:
            raise NotReadyError(
                f"model {self.ref} is down: {self.down}",
                retry_after=self._down_until - time.monotonic(),
            )

    async def _work(
        self, stream: int, batch: Sequence[tuple[Job, bytes]]
    ) -> list[Outcome | Exception]:
        jobs, pictures = [job for job, _ in batch], [picture for _, picture in batch]
        while True:
            await self._up.wait()
            self._refuse_if_down()
            running = self._process
            started = time.monotonic()
            self._batches[running] += 1
            try:
                async with asyncio.timeout(self._stuck_after_s):
                    answers, bodies = await running.answer(stream, jobs, pictures)
            except TimeoutError:
                self._hung = running
                self._hold(running)
                running.kill()
                raise self._stuck() from None
            except ModelFailedError:
                self._hold(running)
                if running is not self._hung:
                    raise
                # Another stream's batch hung. One that has taken long too is held for another
                # culprit; the others only happened to run beside it, and are done again.
                if time.monotonic() - started > self._stuck_after_s / 2:
                    raise self._stuck() from None
            else:
                break
            finally:
                self._batches -= Counter([running])  # drops the entry at zero
                self._batch_over.set()
        self._watch(len(batch))
        return [
            by_code(answer.error, answer.detail) if answer.error else (answer, body)
            for answer, body in zip(answers, bodies, strict=True)
        ]

    def _stuck(self) -> ModelFailedError:
        return ModelFailedError(
            f"model {self.ref} gave no answer within {self._stuck_after_s:g} s; it is started again"
        )

    def _hold(self, lost: ModelProcess) -> None:
        """Give no more jobs to a process that is lost, until `_keep` has another."""
        if lost is self._process and not self.down:
            self._up.clear()

    async def _keep(self) -> None:
        """Start the process again when it has ended, later and later while it keeps ending."""
        ends: deque[float] = deque(maxlen=len(self._pauses_s))
        while True:
            watched = self._process
            how: str | None = await watched.ended()
            if watched is not self._process:  # replaced: nothing was lost
                continue
            while how is not None:
                now = time.monotonic()
                ends.append(now)
                self.crashes += 1
                self.last_end = how
                recent = sum(now - at < _WINDOW_S for at in ends)
                pause = self._pauses_s[recent - 1]
                log.error("a model's process ended", model=str(self.ref), how=how, pause_s=pause)
                if recent < len(self._pauses_s):
                    self._up.clear()  # requests wait
                else:  # too long to wait
                    self.down = f"its process ended {recent} times within {_WINDOW_S:g} s: {how}"
                    self._down_until = now + pause
                    self._up.set()
                    self.on_down(self)
                await asyncio.sleep(pause)
                how = await self._start_again()
            self.down = ""
            self._up.set()

    async def _start_again(self) -> str | None:
        """Start a new process; return why it did not start, None when it did."""
        try:
            self._process = await self._start(self._opening)
        except PolyoloError as error:
            return error.detail
        except Exception as error:  # whatever it is, the next try may fare better
            log.exception("a model's process could not be started", model=str(self.ref))
            return f"it could not be started again ({type(error).__name__})"
        return None

    def _watch(self, answered: int) -> None:
        """Look at the process's memory now and then, and replace a process that leaks."""
        self._unwatched += answered
        if self._unwatched < WATCHED or self._replacing is not None:
            return
        self._unwatched = 0
        now = self._measure(self._process.pid)
        if not self._usual_bytes:
            self._usual_bytes = now
        elif now > _GROWN * self._usual_bytes + _GROWN_BYTES:
            room = memory.available()
            if room is None or room > self._usual_bytes:
                log.warning("a model's process has grown", model=str(self.ref), bytes=now)
                self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        """Put a fresh process in the place of the one that serves, which drains and ends."""
        try:
            with suppress(PolyoloError, OSError):  # no room, perhaps: it is tried again later
                left = await self._start(replace(self._opening, gently=True))
                try:
                    if self._up.is_set() and not self.down:  # else `_keep` is at it already
                        left, self._process = self._process, left
                        self._usual_bytes = self._unwatched = 0
                        while self._batches[left]:
                            self._batch_over.clear()
                            await self._batch_over.wait()
                finally:
                    await left.close()
        finally:
            self._replacing = None
