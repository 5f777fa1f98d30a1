"""One tenant's runtime as its protocols see it: a picture goes in, an answer comes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import ClientDisconnect

from polyolo.errors import DeadlineExceededError, PolyoloError
from polyolo.rollouts import ClassCounts
from polyolo.serving.budget import ByteBudget
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.params import Asked
from polyolo.serving.repository import Lease, Repository
from polyolo.serving.wire import Answer, Job
from polyolo.telemetry import Metrics
from polyolo.types import ModelRef
from polyolo.web import CLIENT_CLOSED_REQUEST

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a protocol knows of a request besides its pictures."""

    asked: Asked
    request_id: str
    media_type: str
    """Form of the answer; see Job."""
    cold_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one picture."""

    ref: ModelRef
    answer: Answer
    body: bytes
    """The encoded answer, in the form that was asked for."""


@dataclass(slots=True)
class Reached:
    """How far a request came."""

    model: str = ""
    """Name of the model that it reached; empty before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The models of one tenant, with what bounds and counts their use."""

    repository: Repository
    metrics: Metrics
    limits: ImageLimits = field(default_factory=ImageLimits)
    budget: ByteBudget = field(default_factory=lambda: ByteBudget(64 * 1024 * 1024))
    """64 MiB: 300 ordinary photos, or three of the largest allowed."""
    timeout_s: float = 30.0
    """Seconds a request may take that names no deadline of its own."""

    unlock: Callable[[str], None] = lambda _: None
    """Takes the key of the tenant's sealed model files."""

    @property
    def tenant(self) -> str:
        """Return whose runtime this is; empty before it has a spec."""
        return self.repository.tenant

    async def served(
        self, asked: Asked, request_id: str, reached: Reached, work: Callable[[Lease], Awaitable[T]]
    ) -> T:
        """Have work done with the model that a request is for, and return what came of it.

        What a version on trial fails at, the current one does; what was queued for a version that
        was taken out, the one in its place. Raises as Repository.acquire, what the work raises,
        and OverloadedError when one more picture would not find room in the model's queue.
        """
        lease = await self.repository.acquire(asked.name, asked.version, request_id)
        canary, failure = lease.canary, None
        try:
            return await self._held(lease, reached, work)
        except PolyoloError as error:
            if not canary and not lease.model.down:
                raise
            failure = error.with_traceback(None)  # its frames hold the picture
        instead = await self.repository.acquire(asked.name, asked.version)
        if instead.model is lease.model:
            instead.release()
            raise failure
        answer = await self._held(instead, reached, work)
        if canary and lease.trial is not None:
            lease.trial.failed += 1
            self.metrics.rollout_requests.labels(self.tenant, reached.model, "failed").inc()
        return answer

    async def _held(
        self, lease: Lease, reached: Reached, work: Callable[[Lease], Awaitable[T]]
    ) -> T:
        try:
            lease.model.queue.refuse_if_full()
            reached.model = lease.model.ref.name
            return await work(lease)
        finally:
            lease.release()

    async def look(self, lease: Lease, picture: bytes, request: Request) -> Found:
        """Find the objects in one encoded picture.

        Raises what read_header raises, InvalidValueError for settings out of range, and the
        errors of the model. Cancelling withdraws the picture unless a stream has it already.
        """
        received = time.monotonic()
        model = lease.model
        job = Job(
            size=len(picture),
            header=read_header(picture, self.limits),
            settings=request.asked.settings(lease.settings),
            request_id=request.request_id,
            media_type=request.media_type,
            cold_start=request.cold_start,
            received=received,
            queued=time.monotonic(),
        )
        labels = self.tenant, model.ref.name
        with self.metrics.in_flight.labels(*labels).track_inprogress():
            answer, body = await model.answer(job, picture)
        if answer.timing is not None:
            self.metrics.observe(*labels, answer.timing)
        self._tried_out(lease, job, picture, answer, body)
        return Found(ref=model.ref, answer=answer, body=bytes(body))

    def _tried_out(
        self, lease: Lease, job: Job, picture: bytes, answer: Answer, body: bytes | memoryview
    ) -> None:
        """Count an answer for the rollout of its model, and have a shadow see a copy."""
        trial = lease.trial
        if trial is None:
            return
        trial.answered(answer.timing, by_current=not lease.canary)
        if not lease.chosen:
            return
        name = lease.model.ref.name
        outcome = "answered"
        if not lease.canary:

            def told(counts: Sequence[ClassCounts]) -> None:
                boxes = self.metrics.rollout_boxes
                for one in counts:
                    boxes.labels(self.tenant, name, "both").inc(one.both)
                    boxes.labels(self.tenant, name, "missing").inc(one.missing)
                    boxes.labels(self.tenant, name, "extra").inc(one.extra)

            copied = trial.copy(job, picture, body, lease.model.opened.classes, told)
            outcome = "copied" if copied else "skipped"
        self.metrics.rollout_requests.labels(self.tenant, name, outcome).inc()


async def measured(runtime: Runtime, handle: Callable[[Reached], Awaitable[T]]) -> T:
    """Handle a request; count it and its time by the model that it reached, none for none."""
    started = time.perf_counter()
    reached = Reached()
    code = PolyoloError.status
    try:
        answer = await handle(reached)
        code = 200
    except PolyoloError as error:
        code = error.status
        # The frames it came through hold the picture; whoever handles the error must not.
        error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904  # the same error, lighter
    except (ClientDisconnect, asyncio.CancelledError):
        code = CLIENT_CLOSED_REQUEST
        raise
    finally:
        labels = runtime.tenant, reached.model
        runtime.metrics.requests.labels(*labels, str(code)).inc()
        runtime.metrics.request_duration.labels(*labels).observe(time.perf_counter() - started)
    return answer


def metering(found: Sequence[Found]) -> dict[str, str]:
    """Return the headers by which the gateway meters a request. found: of one model."""
    timings = [one.answer.timing for one in found]
    engine_ms = sum(timing.inference for timing in timings if timing is not None)
    return {
        "polyolo-model": str(found[0].ref),
        "polyolo-images": str(len(found)),
        "polyolo-engine-ms": f"{engine_ms:.2f}",
    }


@asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Bound a request's time. Raises DeadlineExceededError when it is over."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise DeadlineExceededError(
            f"there was no answer within {timeout_s:g} s; send fewer requests at once, or allow "
            "more time in the header Polyolo-Timeout-Ms"
        ) from None
