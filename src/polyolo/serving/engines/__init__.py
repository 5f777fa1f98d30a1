"""What an inference engine is to polyolo; one module for each, the only one to import it."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from polyolo.serving.heads import GraphSignature


class Engine(Protocol):
    """A loaded graph. Opened by its module's `open_engine(data)`, with one copy of the weights."""

    @property
    def name(self) -> str:
        """The engine's name, as in RuntimeSpec.engine."""

    @property
    def signature(self) -> GraphSignature:
        """The graph's inputs, outputs and metadata."""

    def infer(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph and return its outputs in the graph's order.

        Safe to call from several threads at once; each call keeps one core busy, without the
        GIL. Raises ModelFailedError in a sentence of ours, and when it is closed.
        """

    def close(self) -> None:
        """Free the graph. Called after the last infer has returned; twice does no harm."""
