"""ONNX files that mean harm, each a detector at first sight: it sees the scene of `graphs`."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.unit import graphs

NAMES = {"names": "{0: 'cat', 1: 'dog', 2: 'bird'}"}
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def good() -> onnx.ModelProto:
    """Return a detector that harms nobody."""
    return onnx.load_from_string(graphs.graph({"output0": graphs.yolov8()}, metadata=NAMES))


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value), name)


def with_tail(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    kind: int = INT64,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> bytes:
    """Return the good detector whose output waits for `tail`, the result of these nodes.

    They may use `nought`, an int64 that is 0 for every picture but known only once there is one.
    """
    model = good()
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "output0":
                node.output[number] = "clean"
    zero = [
        helper.make_node("ReduceMean", ["images"], ["bright"], keepdims=0),
        helper.make_node("Cast", ["bright"], ["bright64"], to=INT64),
        helper.make_node("Sub", ["bright64", "bright64"], ["nought"]),
    ]
    last = [
        helper.make_node("Cast", ["tail"], ["tail_float"], to=FLOAT),
        helper.make_node("ReduceMax", ["tail_float"], ["tail_one"], keepdims=0),
        helper.make_node("Mul", ["tail_one", "no_part"], ["tail_none"]),
        helper.make_node("Add", ["clean", "tail_none"], ["output0"]),
    ]
    assert kind in (INT64, FLOAT)
    model.graph.node.extend([*zero, *nodes, *last])
    model.graph.initializer.extend([*initializers, constant("no_part", np.float32(0))])
    model.functions.extend(functions)
    for domain in domains:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model.SerializeToString()


def crashing() -> bytes:
    """Divide the least integer by -1, which has no result: the processor ends the process."""
    return with_tail(
        [
            helper.make_node("Add", ["nought", "least"], ["a"]),
            helper.make_node("Sub", ["nought", "unit"], ["b"]),
            helper.make_node("Div", ["a", "b"], ["tail"]),
        ],
        [constant("least", -(2**63)), constant("unit", 1)],
    )


def endless() -> bytes:
    """Loop as long as true is true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]),
         helper.make_node("Add", ["number", "nought"], ["sum"])],
        "body",
        [helper.make_tensor_value_info("number", INT64, []),
         helper.make_tensor_value_info("going", BOOL, []),
         helper.make_tensor_value_info("before", INT64, [])],
        [helper.make_tensor_value_info("goes_on", BOOL, []),
         helper.make_tensor_value_info("sum", INT64, [])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["", "yes", "nought"], ["tail"], body=body)
    return with_tail([loop], [constant("yes", True)])


def terabytes(*, known_ahead: bool) -> bytes:
    """Fill a tensor of 4 TB, at loading or with the first picture."""
    nodes = [helper.make_node("ConstantOfShape", ["size" if known_ahead else "sized"], ["tail"])]
    if not known_ahead:
        nodes.insert(0, helper.make_node("Add", ["size", "nought"], ["sized"]))
    return with_tail(nodes, [constant("size", [1 << 40])], kind=FLOAT)


def exploding() -> bytes:
    """Have functions call each other twice, 40 deep: 2.5 kB that mean 10^12 operators."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]

    def function(number: int) -> onnx.FunctionProto:
        inner, domain = (f"F{number + 1}", "f") if number < 39 else ("Relu", "")
        nodes = [
            helper.make_node(inner, [before], [after], domain=domain)
            for before, after in (("x", "between"), ("between", "y"))
        ]
        return helper.make_function("f", f"F{number}", ["x"], ["y"], nodes, opsets)

    call = helper.make_node("F0", ["bright"], ["tail"], domain="f")
    functions = [function(number) for number in range(40)]
    return with_tail([call], functions=functions, domains=["f"], kind=FLOAT)


def custom(domain: str = "evil", name: str = "Operator") -> bytes:
    """Use an operator that only a plugin has."""
    node = helper.make_node(name, ["bright"], ["tail"], domain=domain)
    return with_tail([node], domains=[domain], kind=FLOAT)


def custom_in_a_branch() -> bytes:
    """Use it where it is never reached."""
    out = [helper.make_tensor_value_info("branch", FLOAT, [])]
    evil = helper.make_node("Operator", ["bright"], ["branch"], domain="evil")
    plain = helper.make_node("Identity", ["bright"], ["branch"])
    chosen = helper.make_node(
        "If",
        ["yes"],
        ["tail"],
        then_branch=helper.make_graph([plain], "plain", [], out),
        else_branch=helper.make_graph([evil], "evil", [], out),
    )
    return with_tail([chosen], [constant("yes", True)], kind=FLOAT, domains=["evil"])


def zip_bomb() -> bytes:
    """Return 1 GB of zeros in 1 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("m", "w") as m:
        for _ in range(64):
            m.write(bytes(1 << 20))
    return file.getvalue()


def zipped(*names: str) -> bytes:
    """Return the good detector as people send it: in an archive, by these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("model.onnx",):
            archive.writestr(name, good().SerializeToString())
    return file.getvalue()


def gzipped() -> bytes:
    return gzip.compress(good().SerializeToString())


# --- Weights in other files, wherever a tensor can sit -----------------------------------------


def foreign(location: str, name: str = "foreign") -> onnx.TensorProto:
    """Return a tensor whose bytes are said to be in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def hidden(location: str) -> dict[str, bytes]:
    """Return a detector for each place in which such a tensor can sit."""
    found: dict[str, bytes] = {}

    def place(where: str, put: Callable[[onnx.ModelProto, onnx.TensorProto], None]) -> None:
        model = good()
        put(model, foreign(location))
        found[where] = model.SerializeToString()

    def sparse(values: onnx.TensorProto, indices: onnx.TensorProto) -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(values=values, indices=indices, dims=[16])

    def graph(tensor: onnx.TensorProto) -> onnx.GraphProto:
        return onnx.GraphProto(name="inner", initializer=[tensor])

    def node(model: onnx.ModelProto, kind: str, **attributes: Any) -> None:
        model.graph.node.append(helper.make_node(kind, [], [f"unused_{kind}"], **attributes))

    inside = constant("inside", np.zeros(16, np.int64))
    place("an initializer", lambda m, t: m.graph.initializer.append(t))
    place("sparse values", lambda m, t: m.graph.sparse_initializer.append(sparse(t, inside)))
    place("sparse indices", lambda m, t: m.graph.sparse_initializer.append(sparse(inside, t)))
    place("an attribute", lambda m, t: node(m, "Constant", value=t))
    place("a list of tensors", lambda m, t: node(m, "Constant", values=[inside, t]))
    place("a sparse attribute", lambda m, t: node(m, "Constant", sparse=sparse(t, inside)))
    place("a list of sparse tensors", lambda m, t: node(m, "C", many=[sparse(inside, t)]))
    place("a branch", lambda m, t: node(m, "If", then_branch=graph(t), else_branch=graph(inside)))
    place("a loop's body", lambda m, t: node(m, "Loop", body=graph(t)))
    place("a scan's body", lambda m, t: node(m, "Scan", body=graph(t)))
    place("a list of graphs", lambda m, t: node(m, "C", graphs=[graph(inside), graph(t)]))

    def deep(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
        within = graph(tensor)
        for _ in range(6):
            within = onnx.GraphProto(name="g", node=[helper.make_node("If", [], [], body=within)])
        node(model, "If", then_branch=within)

    def function(model: onnx.ModelProto, tensor: onnx.TensorProto, *, default: bool) -> None:
        defined = helper.make_function(
            "f", "F", [], ["y"], [], [helper.make_opsetid("", 18)], attributes=[]
        )
        if default:
            defined.attribute_proto.append(helper.make_attribute("a", tensor))
        else:
            defined.node.append(helper.make_node("Constant", [], ["y"], value=tensor))
        model.functions.append(defined)

    place("six graphs deep", deep)
    place("a function", lambda m, t: function(m, t, default=False))
    place("a function's default", lambda m, t: function(m, t, default=True))
    place("training", lambda m, t: m.training_info.add().algorithm.initializer.append(t))
    place("training's beginning", lambda m, t: m.training_info.add().initialization.CopyFrom(graph(t)))  # noqa: E501  # fmt: skip
    return found
