"""Models that are well until they see a white picture: each then does what a model can do wrong."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.integration.runtime import NAMES
from tests.unit import graphs


def picture(*, white: bool) -> bytes:
    """Return a PNG of the model's own size, white or grey."""
    value = 255 if white else 100
    return cv2.imencode(".png", np.full((64, 64, 3), value, np.uint8))[1].tobytes()


def hangs(*, above: float = 0.9) -> bytes:
    """Loop for years: a trip count of 0 for other pictures, of 10^15 for white ones.

    above: the mean, 0 to 1, from which a picture is white; with 0 it hangs on every picture.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["on_out"]),
            helper.make_node("Mul", ["x", "half"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, ()),
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ()),
        ],
        [
            helper.make_tensor_value_info("on_out", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, ()),
        ],
        initializer=[_number("half", 0.5)],
    )
    return _model(
        helper.make_node("Mul", ["white", "very_many"], ["trips_float"]),
        helper.make_node("Cast", ["trips_float"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "", "mean"], ["harm"], body=body),
        above=above,
    )


def no_numbers() -> bytes:
    """Divide by 1, and by 0 for white pictures: 0/0 is NaN."""
    return _model(
        helper.make_node("Sub", ["one", "white"], ["divisor"]),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Div", ["nothing", "divisor"], ["harm"]),
    )


def too_large() -> bytes:
    """Allocate 4 bytes, and 4 * 10^15 for white pictures."""
    return _model(
        helper.make_node("Mul", ["white", "very_many"], ["size_float"]),
        helper.make_node("Add", ["size_float", "one"], ["size_one"]),
        helper.make_node("Cast", ["size_one"], ["size"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["size", "vector"], ["size_vector"]),
        helper.make_node("Expand", ["mean", "size_vector"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["harm"], keepdims=0),
    )


def dies(*, best: float = 0.9) -> bytes:
    """Divide the least integer by 1, and by -1 for white pictures: the quotient fits into no
    register, and the processor ends the process (SIGFPE).

    best: confidence of the dog, to tell one version from another by its answer.
    """
    return _model(
        helper.make_node("Sub", ["one", "white"], ["one_less"]),
        helper.make_node("Sub", ["one_less", "white"], ["divisor_float"]),
        helper.make_node("Cast", ["divisor_float"], ["divisor"], to=TensorProto.INT64),
        helper.make_node("Div", ["least", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["harm"], to=TensorProto.FLOAT),
        best=best,
    )


def _model(*nodes: onnx.NodeProto, above: float = 0.9, best: float = 0.9) -> bytes:
    """Return a YOLOv8 that sees its scene once the nodes have made `harm`, a scalar."""
    scene = graphs.yolov8()
    scene[0, 5, graphs.AT[0]] = best
    head: Sequence[onnx.NodeProto] = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "bright"], ["is_white"]),
        helper.make_node("Cast", ["is_white"], ["white"], to=TensorProto.FLOAT),
    ]
    tail = [
        helper.make_node("Mul", ["harm", "zero"], ["none"]),
        helper.make_node("Add", ["none", "scene"], ["output0"]),
    ]
    made = helper.make_model(
        helper.make_graph(
            [*head, *nodes, *tail],
            "troubled",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 7, graphs.PLACES))],
            initializer=[
                numpy_helper.from_array(np.array([0, 1, 2, 3]), "axes"),
                numpy_helper.from_array(np.array([1]), "vector"),
                _number("bright", above),
                _number("very_many", 1e15),
                _number("zero", 0),
                _number("one", 1),
                numpy_helper.from_array(np.int64(-(2**63)), "least"),
                numpy_helper.from_array(scene, "scene"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(made, NAMES)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def _number(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.float32(value), name)
