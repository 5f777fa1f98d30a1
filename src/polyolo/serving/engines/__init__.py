"""What an inference engine is to polyolo; one module for each, the only one to import it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from polyolo.errors import ModelRefusedError
from polyolo.serving import torchfile
from polyolo.serving.heads import GraphSignature

EXACT = "float32"
"""The arithmetic that never changes an answer; every engine has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a graph is to be opened."""

    arithmetic: str = EXACT
    """float32, or one of those that the engine's `arithmetics` names."""
    streams: int = 1
    """Calls of `infer` under way at once, at most."""


class Engine(Protocol):
    """A loaded graph. Opened by its module's `open_engine`, with one copy of the weights."""

    @property
    def name(self) -> str:
        """The engine's name, as in VersionSpec.engine."""

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda or tensorrt."""

    @property
    def signature(self) -> GraphSignature:
        """The graph's inputs, outputs and metadata."""

    def infer(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph and return its outputs in the graph's order.

        Safe to call from several threads at once; on a CPU each call keeps one core busy, without
        the GIL, and nothing spins between calls. Raises ModelFailedError in a sentence of ours,
        and when it is closed.
        """

    def close(self) -> None:
        """Free the graph. Called after the last infer has returned; twice does no harm."""


class _Module(Protocol):
    def open_engine(self, data: bytes, options: Options) -> Engine: ...

    def arithmetics(self) -> tuple[str, ...]: ...


ONNX = ("onnxruntime", "openvino")
"""Engines that run ONNX files, the first where it makes no difference."""
TORCH = ("torch",)


def able(data: bytes) -> tuple[str, ...]:
    """Name the engines that are installed and open files of this kind, the usual one first."""
    kinds = TORCH if torchfile.kind(data) else ONNX
    return tuple(name for name in kinds if find_spec(name) is not None)


def arithmetics(name: str) -> tuple[str, ...]:
    """Name what an engine can compute in on this machine: float32, then what may be faster."""
    return _module(name).arithmetics()


def open_engine(name: str, data: bytes, options: Options | None = None) -> Engine:
    """Open a model file's bytes with an engine; the only way in.

    Blocks for tens of milliseconds and more, partly with the GIL held. Raises ModelRefusedError
    for what is not a complete, valid model that this engine can run.
    """
    return _module(name).open_engine(data, options or Options())


def _module(name: str) -> _Module:
    if name not in (*ONNX, *TORCH):
        raise ModelRefusedError(
            f"there is no engine {name[:80]!r}; ask for {', '.join((*ONNX, *TORCH))} or auto"
        )
    if find_spec(name) is None:
        raise ModelRefusedError(
            f"the engine {name} is not installed in this runtime; the operator can add it with "
            f"pip install 'polyolo[{name}]', or ask for engine auto"
        )
    return cast("_Module", import_module(f"polyolo.serving.engines.{name}"))
