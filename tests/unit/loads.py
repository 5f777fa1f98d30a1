"""A loader of models that a test directs: it fails, waits, and counts what is open."""

from __future__ import annotations

import threading

from polyolo.serving.loading import LoadedModel
from polyolo.types import DetectionSettings, ModelRef, ModelSpec, RuntimeSpec, VersionSpec


class Loads:
    """A loader that can be told to fail or to wait, and that sees what is opened and closed."""

    def __init__(self) -> None:
        self.refuse: dict[str, Exception] = {}
        self.gates: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []

    def __call__(self, name: str, version: VersionSpec) -> LoadedModel:
        ref = ModelRef(name=name, version=version.version)
        self.asked.append(str(ref))
        if str(ref) in self.gates:
            assert self.gates[str(ref)].wait(10)
        if str(ref) in self.refuse:
            raise self.refuse[str(ref)]
        self.opened.append(str(ref))
        return LoadedModel(
            ref,
            version,
            None,  # type: ignore[arg-type]  # nothing is detected here
            family="yolox",
            input=(1, 3, 64, 64),
            engine="fake",
            close=lambda: self.closed.append(str(ref)),
        )

    def hold(self, ref: str) -> threading.Event:
        """Make loads of a version wait for the event returned."""
        return self.gates.setdefault(ref, threading.Event())


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
