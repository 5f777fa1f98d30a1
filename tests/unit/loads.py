"""A loader of models that a test directs: it fails, waits, and counts what is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from polyolo.serving.batcher import Capacity
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.process import ModelProcess
from polyolo.serving.wire import Opened, Opening
from polyolo.types import DetectionSettings, ModelRef, ModelSpec, RuntimeSpec, VersionSpec


class Process:
    """Stands in for a model's process; nothing is detected here."""

    pid = 0
    opened = Opened(family="yolox", input=(1, 3, 64, 64), engine="fake")

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close = on_close

    async def ended(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        self._on_close()


class Loads:
    """A loader that can be told to fail or to wait, and that sees what is opened and closed."""

    def __init__(self) -> None:
        self.refuse: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.cancelled: list[str] = []
        self.at_once = 0

    async def __call__(
        self, name: str, version: VersionSpec, *, background: bool = False
    ) -> LoadedModel:
        ref = str(ModelRef(name=name, version=version.version))
        self.asked.append(ref)
        self.at_once += 1
        assert self.at_once == 1, "two loads at once double the peak of memory"
        try:
            if ref in self.gates:
                await self.gates[ref].wait()
        except asyncio.CancelledError:
            self.cancelled.append(ref)
            raise
        finally:
            self.at_once -= 1
        if ref in self.refuse:
            raise self.refuse[ref]
        self.opened.append(ref)
        opening = Opening(
            ref=ModelRef(name=name, version=version.version),
            path="",
            digest=version.digest,
            classes=(),
            family=None,
            streams=1,
        )
        process = cast("ModelProcess", Process(lambda: self.closed.append(ref)))
        return LoadedModel(opening, version, process, Capacity(streams=1), 10.0)

    def hold(self, ref: str) -> asyncio.Event:
        """Make loads of a version wait for the event returned."""
        return self.gates.setdefault(ref, asyncio.Event())


def version(number: int, digest: str = "d") -> VersionSpec:
    return VersionSpec(version=number, digest=digest, uri=f"{number}.onnx")


def model(name: str, current: int, *, versions: int = 3, **settings) -> ModelSpec:
    return ModelSpec(
        name=name,
        current=current,
        versions=tuple(version(number) for number in range(1, versions + 1)),
        settings=DetectionSettings(**settings),
    )


def spec(generation: int, *models: ModelSpec) -> RuntimeSpec:
    return RuntimeSpec(
        tenant="t_1", generation=generation, default_model=models[0].name, models=models
    )
