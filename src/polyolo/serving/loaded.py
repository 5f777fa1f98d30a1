"""A model version in service: its queue, its process, and the requests that hold it.

Keeps the process alive: one that crashes, or hangs on a batch, costs the requests that it had and
is started again. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from polyolo import telemetry
from polyolo.errors import ModelFailedError, ModelRefusedError, NotReadyError, PolyoloError, by_code
from polyolo.serving.batcher import Batcher, Capacity
from polyolo.serving.process import ModelProcess, start
from polyolo.serving.wire import Answer, Job, Opening
from polyolo.types import VersionSpec

Outcome = tuple[Answer, bytes | memoryview]
"""An answer, and its encoded body."""

_PAUSES_S = (0.0, 0.25, 0.5, 1.0, 30.0)
"""Seconds before a crashed process is started again, by the crashes within `_WINDOW_S`: a model
that crashes five times a minute is a broken model, and should not cost the others its starts."""
_WINDOW_S = 60.0

log = telemetry.logger("loaded")


class LoadedModel:
    """An open model, closed once it is retired and its last lease is released."""

    def __init__(
        self,
        opening: Opening,
        version: VersionSpec,
        process: ModelProcess,
        capacity: Capacity,
        stuck_after_s: float,
    ) -> None:
        self.ref = opening.ref
        self.version = version
        self.opened = process.opened
        self.down = ""
        """Why it cannot answer at the moment, for a person to read; empty when it can."""
        self.queue: Batcher[tuple[Job, bytes], Outcome] = Batcher(self._work, capacity)
        self._opening = opening
        self._process = process
        self._stuck_after_s = stuck_after_s
        self._up = asyncio.Event()
        self._up.set()
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
        if self.down:
            raise NotReadyError(f"model {self.ref} is down: {self.down}")
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
        await self._process.close()

    async def _work(
        self, stream: int, batch: Sequence[tuple[Job, bytes]]
    ) -> list[Outcome | Exception]:
        await self._up.wait()
        if self.down:
            raise NotReadyError(f"model {self.ref} is down: {self.down}")
        process = self._process
        try:
            async with asyncio.timeout(self._stuck_after_s):
                answers, bodies = await process.answer(
                    stream, [job for job, _ in batch], [picture for _, picture in batch]
                )
        except TimeoutError:
            process.kill()
            raise ModelFailedError(
                f"model {self.ref} gave no answer within {self._stuck_after_s:g} s; it is started "
                "again"
            ) from None
        return [
            by_code(answer.error, answer.detail) if answer.error else (answer, body)
            for answer, body in zip(answers, bodies, strict=True)
        ]

    async def _keep(self) -> None:
        """Start the process again when it has ended, later and later while it keeps ending."""
        crashes: deque[float] = deque(maxlen=len(_PAUSES_S))
        while True:
            how = await self._process.ended()
            self._up.clear()
            while True:
                now = time.monotonic()
                crashes.append(now)
                recent = sum(now - at < _WINDOW_S for at in crashes)
                pause = _PAUSES_S[recent - 1]
                log.error("a model's process ended", model=str(self.ref), how=how, pause_s=pause)
                if pause > 1.0:  # requests are not held for that long
                    self.down = f"its process ended {recent} times in {_WINDOW_S:.0f} s, {how}"
                    self._up.set()
                await asyncio.sleep(pause)
                try:
                    self._process = await start(self._opening)
                except ModelRefusedError as error:
                    how = error.detail
                except (PolyoloError, OSError) as error:
                    how = str(error)
                else:
                    break
            self.down = ""
            self._up.set()
