"""What a head is: how a picture goes into a graph, and how boxes come out of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyolo.serving.heads.signature import TensorInfo


class Fit(StrEnum):
    """How a picture of another shape is brought to the graph's size."""

    TOP_LEFT = "top-left"  # scaled, at the top left of a padded canvas (Megvii)
    CENTRE = "centre"  # scaled, in the middle of a padded canvas (Ultralytics)
    STRETCH = "stretch"  # both sides scaled on their own


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How a picture becomes the graph's input tensor."""

    name: str
    size: tuple[int, int]
    """Height and width in pixels."""
    batch: int
    """Pictures a run; 0: any number."""
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16", "uint8"]
    colour: Literal["BGR", "RGB"]
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel, in the tensor's order: value = pixel * gain + offset."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fit: Fit
    pad: int = 114
    """Pixel value around a letterboxed picture; 114 is what YOLOs are trained with."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The tensor's shape, 0 for any number of pictures."""
        height, width = self.size
        if self.layout == "NCHW":
            return self.batch, 3, height, width
        return self.batch, height, width, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Boxes of one picture as the head gives them: before NMS, in no particular order.

    xyxy: float32 [N,4] in pixels of the input tensor, not clipped. score: float32 [N], at least
    the asked confidence. class_id: integers [N].
    """

    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    class_id: NDArray[np.integer[Any]]


Decode = Callable[[Sequence[NDArray[Any]], int, float, int], Candidates]
"""Decode (the head's outputs, index in the batch, least confidence, number of classes).

The outputs are those that the head picked, of checked shape, floating ones as float32.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One recognised model: immutable, safe in any thread."""

    family: str
    input: InputSpec
    classes: int
    """Classes that the graph can give; 0 where it does not tell."""
    outputs: tuple[tuple[int, TensorInfo], ...]
    """Index and shape of those outputs that the head decodes, in the order `decode` wants."""
    overlaps: bool
    """True where several boxes for one object must be expected: NMS is ours to do."""
    decode: Decode
    size_input: TensorInfo | None = None
    """A second input that asks for the picture's width and height (D-FINE's orig_target_sizes);
    it is told the tensor's, so that boxes come in pixels of the tensor as everywhere else."""

    def feeds(self, tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return what the graph is fed with for a batch of prepared pictures."""
        feeds = {self.input.name: tensor}
        if self.size_input is not None:
            height, width = self.input.size
            sizes = np.array([[width, height]] * len(tensor), self.size_input.dtype)
            feeds[self.size_input.name] = sizes
        return feeds
