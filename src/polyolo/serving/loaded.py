"""A model version in service: its queue, its process, and the requests that hold it.

Keeps the process alive: one that crashes, or hangs on a batch, costs the requests that it had and
is started again. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from polyolo import telemetry
from polyolo.errors import ModelFailedError, NotReadyError, PolyoloError, by_code
from polyolo.serving import process
from polyolo.serving.batcher import Batcher, Capacity
from polyolo.serving.process import ModelProcess
from polyolo.serving.wire import Answer, Job, Opening
from polyolo.types import VersionSpec

Outcome = tuple[Answer, bytes | memoryview]
"""An answer, and its encoded body."""

Start = Callable[[Opening], Awaitable[ModelProcess]]

PAUSES_S = (0.0, 0.25, 0.5, 1.0, 30.0)
"""Seconds before a crashed process is started again, by the crashes within `_WINDOW_S`: a model
that crashes five times a minute is a broken model, and should not cost the others its starts.
During the last pause it is down: its requests are refused."""
_WINDOW_S = 60.0

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
    ) -> None:
        self.ref = opening.ref
        self.version = version
        self.opened = running.opened
        self.down = ""
        """Why it cannot answer at the moment, for a person to read; empty when it can."""
        self.queue: Batcher[tuple[Job, bytes], Outcome] = Batcher(self._work, capacity)
        # As it was chosen then: a restart measures nothing again.
        self._opening = replace(
            opening, engine=self.opened.engine, arithmetic=self.opened.precision
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
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
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
            how: str | None = await self._process.ended()
            while how is not None:
                now = time.monotonic()
                ends.append(now)
                recent = sum(now - at < _WINDOW_S for at in ends)
                pause = self._pauses_s[recent - 1]
                log.error("a model's process ended", model=str(self.ref), how=how, pause_s=pause)
                if recent < len(self._pauses_s):
                    self._up.clear()  # requests wait
                else:  # too long to wait
                    self.down = f"its process ended {recent} times within {_WINDOW_S:g} s: {how}"
                    self._down_until = now + pause
                    self._up.set()
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
