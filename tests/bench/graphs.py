"""Builds graphs of a real detector's size and shape with random weights, for timing alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def yolov8n(seed: int = 0) -> bytes:
    """Return an ONNX file of YOLOv8n's layers: 3.2 M parameters, 8.7 GFLOP a picture at 640.

    Its sigmoids are shifted so that random weights give few detections. Layers after the paper
    "Real-Time Flying Object Detection with YOLOv8" (arXiv 2305.09972), figure 1.
    """
    make = _Layers(seed)
    x = make.conv(make.conv("images", 3, 16, 3, 2), 16, 32, 3, 2)
    x = make.conv(make.c2f(x, 32, 32, 1), 32, 64, 3, 2)
    p3 = make.c2f(x, 64, 64, 2)
    p4 = make.c2f(make.conv(p3, 64, 128, 3, 2), 128, 128, 2)
    p5 = make.sppf(make.c2f(make.conv(p4, 128, 256, 3, 2), 256, 256, 1), 256)
    up4 = make.c2f(make.join(make.double(p5), p4), 384, 128, 1, shortcut=False)
    n3 = make.c2f(make.join(make.double(up4), p3), 192, 64, 1, shortcut=False)
    n4 = make.c2f(make.join(make.conv(n3, 64, 64, 3, 2), up4), 192, 128, 1, shortcut=False)
    n5 = make.c2f(make.join(make.conv(n4, 128, 128, 3, 2), p5), 384, 256, 1, shortcut=False)
    heads = [make.head(n3, 64, 80), make.head(n4, 128, 40), make.head(n5, 256, 20)]
    make.nodes.append(helper.make_node("Concat", heads, ["output0"], axis=2))
    model = helper.make_model(
        helper.make_graph(
            make.nodes,
            "yolov8n",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 640, 640))],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 84, 8400))],
            initializer=make.weights,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Layers:
    """Collects nodes and weights; each method adds a block and returns its output's name."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def conv(self, x, inputs, outputs, kernel=1, stride=1, *, activated=True):
        size = inputs * kernel * kernel
        weight = self._random.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(size)
        out = self._add(
            "Conv",
            [x, self._value(weight.astype(np.float32)), self._value(np.zeros(outputs, np.float32))],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )
        return self._add("Mul", [out, self._add("Sigmoid", [out])]) if activated else out

    def c2f(self, x, inputs, outputs, repeats, *, shortcut=True):
        half = outputs // 2
        name = f"n{len(self.nodes)}"
        parts = [f"{name}a", f"{name}b"]
        whole = self.conv(x, inputs, outputs)
        split = helper.make_node(
            "Split", [whole, self._value(np.array([half, half]))], parts, axis=1
        )
        self.nodes.append(split)
        for _ in range(repeats):
            inner = self.conv(self.conv(parts[-1], half, half, 3), half, half, 3)
            parts.append(self._add("Add", [parts[-1], inner]) if shortcut else inner)
        return self.conv(self.join(*parts), half * len(parts), outputs)

    def sppf(self, x, channels):
        parts = [self.conv(x, channels, channels // 2)]
        for _ in range(3):
            pooled = {"kernel_shape": [5, 5], "pads": [2] * 4, "strides": [1, 1]}
            parts.append(self._add("MaxPool", [parts[-1]], **pooled))
        return self.conv(self.join(*parts), 2 * channels, channels)

    def head(self, x, channels, side):
        """Boxes by the expectation over 16 bins, and 80 scores: [1,84,side * side]."""
        box = self.conv(self.conv(x, channels, 64, 3), 64, 64, 3)
        box = self._reshaped(self.conv(box, 64, 64, activated=False), 1, 4, 16, side * side)
        bins = self._value(np.arange(16, dtype=np.float32).reshape(1, 1, 16, 1))
        likely = self._add("Mul", [self._add("Softmax", [box], axis=2), bins])
        box = self._add("ReduceSum", [likely, self._value(np.array([2]))], keepdims=0)
        score = self.conv(self.conv(x, channels, 80, 3), 80, 80, 3)
        score = self._reshaped(self.conv(score, 80, 80, activated=False), 1, 80, side * side)
        score = self._add("Sub", [score, self._value(np.array(8, np.float32))])
        return self.join(box, self._add("Sigmoid", [score]))

    def double(self, x):
        scales = self._value(np.array([1, 1, 2, 2], np.float32))
        return self._add("Resize", [x, "", scales], mode="nearest")

    def join(self, *parts):
        return self._add("Concat", list(parts), axis=1)

    def _reshaped(self, x, *shape):
        return self._add("Reshape", [x, self._value(np.array(shape))])

    def _add(self, kind, inputs, **attributes):
        out = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def _value(self, array):
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{len(self.weights)}"))
        return self.weights[-1].name
