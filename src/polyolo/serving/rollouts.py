"""A version on trial in this runtime: who gets to see it, and what it shows.

Everything here runs on the event loop. A version on trial has one life: once its process has
ended by itself, or could not open it, it takes no part any more, and the current version answers
everything.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from polyolo.errors import PolyoloError
from polyolo.rollouts import ClassCounts, Comparison, Rollout, RolloutStatus, compared
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.params import JSON
from polyolo.serving.shelf import Key, Shelf
from polyolo.serving.spec import find
from polyolo.serving.wire import ARRAYS, COMPARISON, Against, Answer, Job
from polyolo.types import ModelSpec, Timing, VersionSpec

_COPIES = 4
"""Copies that may wait for a shadow at once: enough to keep it busy between two answers."""
_COPY_BYTES = 16 * 2**20
"""Of all waiting copies, pictures and answers: apart from what requests may hold."""


def chosen(request_id: str, share: float) -> bool:
    """Say whether a request belongs to a share, 0 to 1; the same id always gets the same answer.

    The first 8 bytes of the id's SHA-256, as a big-endian fraction of 2^64, lie below the share.
    """
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


class OnTrial:
    """One rollout: its version beside the current one, and its counts."""

    def __init__(self, rollout: Rollout, version: VersionSpec) -> None:
        """Prepare; it takes part from `begin` on."""
        self.rollout = rollout
        self.version = version
        self.loaded: LoadedModel | None = None
        self.seen = self.requests = self.failed = self.skipped = 0
        self._reason = ""
        self._crashes_before = 0
        self._times, self._current_times = _Mean(), _Mean()
        self._pictures = 0
        self._comparison = Comparison()
        self._copies: set[asyncio.Task[None]] = set()
        self._copy_bytes = 0

    @property
    def out(self) -> str:
        """Why it takes no part any more, for a person to read; empty while it may."""
        loaded = self.loaded
        if not self._reason and loaded is not None and loaded.crashes > self._crashes_before:
            self._reason = f"its process ended while it was on trial: {loaded.last_end}"
        return self._reason

    def is_wanted(self, model: ModelSpec) -> bool:
        """Say whether a model's spec still asks for this, and take its share over if so."""
        wanted = model.rollout
        if wanted is None or wanted.version == model.current:
            return False
        if replace(wanted, share=self.rollout.share) != self.rollout:
            return False
        self.rollout = wanted
        return find(model, wanted.version) == self.version

    def begin(self, loaded: LoadedModel) -> None:
        """Take part from now on, with an open model."""
        self.loaded = loaded
        self._crashes_before = loaded.crashes

    def fail(self, reason: str) -> None:
        """Take no part: it could not be opened."""
        self._reason = reason

    def takes(self, request_id: str) -> bool:
        """Say whether the version is to see a request that names no version, and count it."""
        if self.loaded is None or self.out:
            return False
        self.seen += 1
        if not chosen(request_id, self.rollout.share):
            return False
        self.requests += 1
        return True

    def canary(self) -> LoadedModel | None:
        """Return the version with a lease, if it is to answer requests itself."""
        if self.rollout.shadow or self.loaded is None:
            return None
        return self.loaded if self.loaded.lease() else None

    def answered(self, timing: Timing | None, *, by_current: bool) -> None:
        """Count the time that a picture took."""
        (self._current_times if by_current else self._times).add(timing)

    def copy(
        self,
        job: Job,
        picture: bytes,
        body: bytes | memoryview,
        classes: tuple[str, ...],
        told: Callable[[Sequence[ClassCounts]], None],
    ) -> bool:
        """Have the version see what was just answered; False when it is busy with earlier ones.

        body: the answer, encoded. classes: names by id of the version that gave it. told: called
        with what the copy showed. Returns at once.
        """
        if job.media_type not in (JSON, ARRAYS):  # no boxes to compare with in a picture
            return True
        size = len(picture) + len(body)
        if len(self._copies) >= _COPIES or self._copy_bytes + size > _COPY_BYTES:
            self.skipped += 1
            return False
        self._copy_bytes += size
        now = time.monotonic()
        task = asyncio.create_task(
            self._look(
                replace(
                    job,
                    size=size,
                    media_type=COMPARISON,
                    against=Against(size=len(body), media_type=job.media_type, classes=classes),
                    received=now,
                    queued=now,
                ),
                b"".join((picture, body)),
                told,
            )
        )
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)
        return True

    async def _look(
        self, job: Job, picture_and_answer: bytes, told: Callable[[Sequence[ClassCounts]], None]
    ) -> None:
        assert self.loaded is not None  # else it takes no request
        try:
            if not self.loaded.lease():
                return
            try:
                answer, body = await self.loaded.answer(job, picture_and_answer)
            finally:
                self.loaded.release()
        except PolyoloError:
            self.failed += 1
        else:
            counts = msgspec.json.decode(body, type=list[ClassCounts])
            self._count(answer, counts)
            told(counts)
        finally:
            self._copy_bytes -= job.size

    def _count(self, answer: Answer, counts: Sequence[ClassCounts]) -> None:
        self._times.add(answer.timing)
        self._pictures += 1
        self._comparison = compared(self._pictures, [*self._comparison.classes, *counts])

    def status(self) -> RolloutStatus:
        """Return what there is to tell."""
        return RolloutStatus(
            seen=self.seen,
            requests=self.requests,
            failed=self.failed,
            skipped=self.skipped,
            milliseconds=self._times.value,
            current_milliseconds=self._current_times.value,
            comparison=self._comparison if self.rollout.shadow else None,
        )


class Trials:
    """The rollouts of a runtime, by the name of the model."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._trials: dict[str, OnTrial] = {}

    def get(self, name: str) -> OnTrial | None:
        """Return a model's rollout, if it has one."""
        return self._trials.get(name)

    def keys(self) -> set[Key]:
        """Return the versions on trial."""
        return {(name, trial.version) for name, trial in self._trials.items()}

    def holds(self, loaded: LoadedModel) -> bool:
        """Say whether an open version is on trial."""
        trial = self._trials.get(loaded.ref.name)
        return trial is not None and trial.loaded is loaded

    async def begin(self, model: ModelSpec) -> None:
        """Have the version on trial of a model take part, unless it does or is out already."""
        rollout = model.rollout
        if rollout is None or rollout.version == model.current:
            return
        trial = self._trials.get(model.name)
        if trial is None:
            trial = self._trials[model.name] = OnTrial(rollout, find(model, rollout.version))
        if trial.loaded is not None or trial.out:
            return
        key = (model.name, trial.version)
        try:
            if rollout.shadow:
                loaded = await self._shelf.load_apart(key)
            else:
                loaded = self._shelf.get(key) or await self._shelf.load(key)
        except PolyoloError as error:
            trial.fail(error.detail)
            return
        if self._trials.get(model.name) is trial:
            trial.begin(loaded)
        elif rollout.shadow:
            self._shelf.drop(loaded)

    def end_unwanted(self, models: Mapping[str, ModelSpec]) -> None:
        """End the rollouts that the models of a spec do not ask for."""
        for name, trial in list(self._trials.items()):
            model = models.get(name)
            if model is not None and trial.is_wanted(model):
                continue
            del self._trials[name]
            if trial.rollout.shadow and trial.loaded is not None:
                self._shelf.drop(trial.loaded)


class _Mean:
    """Mean time inside a model's process, milliseconds for a picture."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0

    def add(self, timing: Timing | None) -> None:
        if timing is not None:
            self._count += 1
            self._sum += timing.decode + timing.inference + timing.postprocess

    @property
    def value(self) -> float:
        return round(self._sum / self._count, 2) if self._count else 0.0
