"""Builds small ONNX graphs with a known answer: detectors that always see the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def graph(
    outputs: Mapping[str, NDArray],
    *,
    image: Sequence[int | str] = (1, 3, 64, 64),
    dtype: str = "float32",
    name: str = "images",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]] | None = None,
    metadata: Mapping[str, str] | None = None,
    by_brightness: bool = False,
) -> bytes:
    """Return an ONNX file that gives `outputs` (each [1,…]) once for each picture of the batch.

    shapes: what the file declares instead of the arrays' shapes (a string: dynamic). inputs:
    further ones, ignored by the graph. by_brightness: outputs are multiplied by the mean of the
    picture's tensor, so that two pictures of a batch can be told apart.
    """
    shapes = shapes or {}
    nodes = [helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT)]
    initializers = [numpy_helper.from_array(np.array([1, 2, 3]), "axes")]
    nodes.append(helper.make_node("ReduceMean", ["cast", "axes"], ["mean4"], keepdims=0))
    if not by_brightness:  # one for every picture: 0 * mean + 1
        initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
        initializers.append(numpy_helper.from_array(np.float32(1), "one"))
        nodes.append(helper.make_node("Mul", ["mean4", "zero"], ["none"]))
        nodes.append(helper.make_node("Add", ["none", "one"], ["factor"]))
    else:
        nodes.append(helper.make_node("Identity", ["mean4"], ["factor"]))
    infos = []
    for out, value in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        behind = value.ndim - 1
        initializers.append(numpy_helper.from_array(value.astype(np.float32), f"{out}_value"))
        initializers.append(numpy_helper.from_array(np.array([-1] + [1] * behind), f"{out}_to"))
        nodes.append(helper.make_node("Reshape", ["factor", f"{out}_to"], [f"{out}_factor"]))
        nodes.append(helper.make_node("Mul", [f"{out}_value", f"{out}_factor"], [f"{out}_float"]))
        nodes.append(helper.make_node("Cast", [f"{out}_float"], [out], to=kind))
        shape = shapes.get(out, (image[0], *value.shape[1:]))
        infos.append(helper.make_tensor_value_info(out, kind, shape))
    takes = [helper.make_tensor_value_info(name, _kind(dtype), image)]
    for extra, (extra_dtype, shape) in (inputs or {}).items():
        takes.append(helper.make_tensor_value_info(extra, _kind(extra_dtype), shape))
    model = helper.make_model(
        helper.make_graph(nodes, "small", takes, infos, initializer=initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _kind(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# The scene that every family's graph encodes, on an input of 64 x 64: two objects, and the better
# one a second time, a pixel beside it, as heads on a grid do.
BOXES = np.array([[8, 16, 40, 48], [10, 10, 20, 30], [9, 16, 41, 48]], np.float32)
SCORES = np.array([0.9, 0.6, 0.7], np.float32)
CLASSES = np.array([1, 2, 1])
PLACES = 84  # of grids with strides 8, 16, 32 on 64 x 64: 64 + 16 + 4


def centred(boxes: NDArray = BOXES) -> NDArray:
    """Return corners as centre x, y, width, height."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.concatenate([boxes[:, :2] + half, 2 * half], axis=1).astype(np.float32)


def scores(rows: int, classes: int = 3) -> NDArray:
    """Return [rows,classes] with the scene's scores in rows 5, 70 and 71."""
    matrix = np.full((rows, classes), 0.01, np.float32)
    matrix[list(AT), CLASSES] = SCORES
    return matrix


AT = (5, 70, 71)


def rows(count: int, columns: NDArray) -> NDArray:
    """Return [1,count,…] with the scene's three rows at AT, the others like the first, unlikely."""
    filled = np.repeat(columns[:1], count, axis=0)
    filled[list(AT)] = columns
    return filled[None]


def yolov5(classes: int = 3, count: int = 3 * PLACES) -> NDArray:
    """Return [1,N,5+nc]; scores split into objectness and class."""
    out = np.concatenate(
        [rows(count, centred())[0], np.ones((count, 1)), scores(count, classes)], 1
    )
    out[:, 4] = 0.5
    out[list(AT), 4] = 0.95
    out[list(AT), 5:] /= 0.95
    return out.astype(np.float32)[None]


def yolov6(classes: int = 3) -> NDArray:
    """Return [1,N,5+nc] with objectness 1."""
    out = yolov5(classes, PLACES)
    out[0, :, 4] = 1
    out[0, :, 5:] = scores(PLACES, classes)
    return out


def yolov8(classes: int = 3) -> NDArray:
    """Return [1,4+nc,N]."""
    out = np.concatenate([rows(PLACES, centred())[0], scores(PLACES, classes)], axis=1)
    return np.ascontiguousarray(out.T)[None]


def yolox(classes: int = 3) -> NDArray:
    """Return [1,N,5+nc], boxes undecoded: the inverse of Megvii's formula, place by place."""
    out = yolov5(classes, PLACES)
    places = [(x, y, s) for s in (8, 16, 32) for y in range(64 // s) for x in range(64 // s)]
    for row, (x, y, stride) in zip(out[0], places, strict=True):
        row[:2] = row[:2] / stride - (x, y)
        row[2:4] = np.log(row[2:4] / stride)
    return out


def end_to_end(count: int = 300) -> NDArray:
    """Return [1,M,6] with the scene's two objects, padded with zeros."""
    out = np.zeros((1, count, 6), np.float32)
    for row in (0, 1):
        out[0, row] = [*BOXES[row], SCORES[row], CLASSES[row]]
    return out


def queries(classes: int = 3, count: int = 300) -> tuple[NDArray, NDArray]:
    """Return boxes [1,Q,4] as fractions and scores [1,Q,nc], without the duplicate."""
    boxes = rows(count, centred() / 64)
    matrix = scores(count, classes)
    matrix[AT[2]] = 0.01
    return boxes, matrix[None]


def logits(probabilities: NDArray) -> NDArray:
    """Return the inverse of the sigmoid."""
    return np.log(probabilities / (1 - probabilities)).astype(np.float32)
