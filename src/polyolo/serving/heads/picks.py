"""Finds the tensors that matter among a graph's inputs and outputs, and refuses what is foreign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyolo.errors import ModelRefusedError
from polyolo.serving.heads.signature import GraphSignature, TensorInfo, image_size

DEFAULT_SIDE = 640
"""Pixels of an input whose size neither graph nor metadata tell; what most YOLOs are trained at."""
_MOST_INPUT_PIXELS = 4096 * 4096
"""Of all pictures of a batch: 200 MB as float32. Larger inputs would not fit beside each other."""

Kind = Literal["single", "pair", "labelled", "counted"]
_COUNTED = ("num", "box", "score", "class")  # in the order that direct.with_nms wants
_LABELLED = ("label", "box", "score")  # in the order that direct.labelled wants


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """The tensors of a detector."""

    image: TensorInfo
    layout: Literal["NCHW", "NHWC"]
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    size_input: TensorInfo | None
    kind: Kind
    outputs: tuple[tuple[int, TensorInfo], ...]
    """Index among the graph's outputs, and shape, in the order the decoders want."""


def pick(signature: GraphSignature, input_size: int = 0) -> Picks:
    """Return a graph's tensors. Raises ModelRefusedError, naming the shapes, if it detects not.

    input_size: the side to use where the graph leaves it open; 0: what its metadata tell.
    """
    task = signature.metadata.get("task", "detect").strip().lower()
    if task not in ("detect", ""):
        raise ModelRefusedError(
            f"its metadata says that its task is {task[:40]!r}, and only detection of upright "
            f"boxes ('detect') can be served ({signature})"
        )
    image, size_input = _inputs(signature)
    layout = _layout(image, signature)
    height, width = image.shape[2:] if layout == "NCHW" else image.shape[1:3]
    if input_size and (height or input_size, width or input_size) != (input_size, input_size):
        raise ModelRefusedError(
            f"input_size: its input is fixed at {width} x {height} pixels and cannot be "
            f"{input_size}; export it with dynamic axes, or leave input_size alone"
        )
    if not (height and width):
        told = image_size(signature.metadata) or (DEFAULT_SIDE, DEFAULT_SIDE)
        told = (input_size, input_size) if input_size else told
        height, width = height or told[0], width or told[1]
    if min(height, width) < 32 or max(image.shape[0], 1) * height * width > _MOST_INPUT_PIXELS:
        raise ModelRefusedError(
            f"its input of {width} x {height} pixels is too small or too large; 32 x 32 to "
            f"4096 x 4096, all pictures of a batch together, can be served ({signature})"
        )
    kind, outputs = _outputs(signature)
    if (kind == "labelled") != (size_input is not None):
        raise ModelRefusedError(
            "outputs labels, boxes, scores and an input orig_target_sizes belong together, and "
            f"it has only one of both ({signature})"
        )
    return Picks(
        image=image,
        layout=layout,
        size=(height, width),
        size_input=size_input,
        kind=kind,
        outputs=outputs,
    )


def _inputs(signature: GraphSignature) -> tuple[TensorInfo, TensorInfo | None]:
    images = [one for one in signature.inputs if len(one.shape) == 4]
    sizes = [one for one in signature.inputs if len(one.shape) == 2 and one.shape[1] in (0, 2)]
    if len(images) != 1 or len(sizes) > 1 or len(images) + len(sizes) != len(signature.inputs):
        raise ModelRefusedError(
            "a detector must take one batch of pictures (a tensor of four dimensions), and beside "
            f"it at most orig_target_sizes ({signature})"
        )
    if sizes and sizes[0].dtype not in ("int64", "int32", "float32"):
        raise ModelRefusedError(f"its input of sizes must hold integers ({signature})")
    return images[0], sizes[0] if sizes else None


def _layout(image: TensorInfo, signature: GraphSignature) -> Literal["NCHW", "NHWC"]:
    if image.dtype not in ("float32", "float16", "uint8"):
        raise ModelRefusedError(
            f"its input must be float32, float16 or uint8, not {image.dtype} ({signature})"
        )
    if image.shape[1] == 3:
        return "NCHW"
    if image.shape[3] == 3:
        return "NHWC"
    if image.shape[1] == 0:
        return "NCHW"  # all dynamic: what nearly every exporter writes
    raise ModelRefusedError(
        "its input must have 3 channels, first (NCHW) or last (NHWC) of the dimensions behind "
        f"the batch ({signature})"
    )


def _outputs(signature: GraphSignature) -> tuple[Kind, tuple[tuple[int, TensorInfo], ...]]:
    outputs = tuple(enumerate(signature.outputs))
    ranks = [len(one.shape) for _, one in outputs]
    counted = _by_word(outputs, _COUNTED)
    if counted and [len(one.shape) for _, one in counted[1:]] == [3, 2, 2]:
        return "counted", counted
    labelled = _by_word(outputs, _LABELLED)
    if labelled and [len(one.shape) for _, one in labelled] == [2, 3, 2]:
        return "labelled", labelled
    if ranks == [3, 3]:
        return "pair", _pair(outputs, signature)
    # YOLOv5's older exports give the decoded rows and, behind them, each level's raw map.
    rows = tuple((index, one) for index, one in outputs if len(one.shape) == 3)
    if len(rows) == 1 and all(rank in (3, 5) for rank in ranks):
        return "single", rows
    raise ModelRefusedError(f"{_foreign(ranks)} ({signature})")


def _foreign(ranks: list[int]) -> str:
    if 4 in ranks and 3 in ranks:
        return "its outputs look like segmentation (masks); only plain boxes can be served"
    if ranks == [2]:
        return "its output looks like classification; only detectors of boxes can be served"
    if ranks and set(ranks) == {5}:
        return "its boxes are not decoded; export it with the grid (YOLOv5, v7: --grid)"
    return "its outputs are those of no family that can be served"


def _by_word(
    outputs: tuple[tuple[int, TensorInfo], ...], words: tuple[str, ...]
) -> tuple[tuple[int, TensorInfo], ...]:
    """Return the outputs whose names hold the words, one each, in their order; or none at all."""
    if len(outputs) != len(words):
        return ()
    found = [[out for out in outputs if word in out[1].name.lower()] for word in words]
    if any(len(one) != 1 for one in found) or len({one[0][0] for one in found}) != len(words):
        return ()
    return tuple(one[0] for one in found)


def _pair(
    outputs: tuple[tuple[int, TensorInfo], ...], signature: GraphSignature
) -> tuple[tuple[int, TensorInfo], ...]:
    """Return boxes [B,N,4] and scores [B,N,nc] in this order."""
    fours = [out for out in outputs if out[1].shape[2] == 4]
    named = [out for out in fours if "box" in out[1].name.lower() or out[1].name == "dets"]
    boxes = (named or fours)[:1]  # four classes: boxes are named so, or come first
    if not boxes:
        raise ModelRefusedError(f"neither of its two outputs holds boxes [B,N,4] ({signature})")
    scores = next(out for out in outputs if out[0] != boxes[0][0])
    return boxes[0], scores
