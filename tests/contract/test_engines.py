"""What every engine keeps to; each implementation runs the same tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving import engines
from polyolo.serving.engines import Engine, Options
from polyolo.serving.heads import TensorInfo

Open = Callable[[bytes], Engine]


@pytest.fixture(params=engines.ONNX)
def open_engine(request) -> Open:
    """Open ONNX bytes with each engine that runs them."""
    if find_spec(request.param) is None:  # importorskip would import it, telemetry and all
        pytest.skip(f"the engine {request.param} is not installed")
    return partial(engines.open_engine, request.param, options=Options(streams=2))


def model(*nodes, inputs, outputs, initializers=(), metadata=None) -> onnx.ModelProto:
    made = helper.make_model(
        helper.make_graph(
            list(nodes),
            "small",
            [helper.make_tensor_value_info(*one) for one in inputs],
            [helper.make_tensor_value_info(*one) for one in outputs],
            initializer=list(initializers),
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(made, metadata or {})
    return made


def arithmetic() -> bytes:
    """Return a graph of two inputs and two outputs: sum and product."""
    sides = ("batch", 2)
    return model(
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        inputs=[("a", TensorProto.FLOAT, sides), ("b", TensorProto.FLOAT, sides)],
        outputs=[("sum", TensorProto.FLOAT, sides), ("product", TensorProto.FLOAT, sides)],
        metadata={"names": "{0: 'x'}"},
    ).SerializeToString()


def array(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_an_engine_tells_what_it_holds(open_engine: Open):
    """Names, shapes with 0 for dynamic sides, types as numpy names them, metadata."""
    engine = open_engine(arithmetic())
    assert engine.name in engines.ONNX
    assert engine.device == "cpu"
    assert engine.signature.inputs == (
        TensorInfo(name="a", shape=(0, 2), dtype="float32"),
        TensorInfo(name="b", shape=(0, 2), dtype="float32"),
    )
    assert [one.name for one in engine.signature.outputs] == ["sum", "product"]
    assert engine.signature.metadata == {"names": "{0: 'x'}"}
    engine.close()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.INT64, "int64"),
        (TensorProto.INT32, "int32"),
        (TensorProto.DOUBLE, "float64"),
    ],
)
def test_types_bear_numpys_names(open_engine: Open, kind: int, dtype: str):
    """Whatever goes in and out is named as numpy names it."""
    engine = open_engine(
        model(
            helper.make_node("Identity", ["in"], ["out"]),
            inputs=[("in", kind, (1, 3))],
            outputs=[("out", kind, (1, 3))],
        ).SerializeToString()
    )
    assert engine.signature.inputs[0].dtype == engine.signature.outputs[0].dtype == dtype
    (out,) = engine.infer({"in": np.ones((1, 3), dtype)})
    assert out.dtype == dtype
    engine.close()


def test_outputs_come_in_the_graphs_order(open_engine: Open):
    """The first output first, whatever the nodes' order."""
    engine = open_engine(arithmetic())
    total, product = engine.infer({"a": array(2, 3), "b": array(4, 5)})
    assert total.tolist() == [[6, 8]]
    assert product.tolist() == [[8, 15]]
    engine.close()


def test_threads_infer_side_by_side(open_engine: Open):
    """Each call gets the answer to its own feed."""
    engine = open_engine(arithmetic())
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(200):
            total, _ = engine.infer({"a": array(value, value), "b": array(1, 1)})
            if total.tolist() != [[value + 1, value + 1]]:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    engine.close()


def test_outputs_outlive_the_engine(open_engine: Open):
    """What infer returned stays valid after the next call, and after close."""
    engine = open_engine(arithmetic())
    first = engine.infer({"a": array(1, 1), "b": array(1, 1)})
    engine.infer({"a": array(9, 9), "b": array(9, 9)})
    engine.close()
    assert [one.tolist() for one in first] == [[[2, 2]], [[1, 1]]]


def test_a_graph_that_fails_is_a_failed_model(open_engine: Open):
    """A wrong feed or a graph that breaks while running is said in one line, without paths."""
    engine = open_engine(arithmetic())
    for feeds in ({"a": array(1, 2)}, {"a": array(1, 2), "b": np.ones((1, 7), np.float32)}):
        with pytest.raises(ModelFailedError) as caught:
            engine.infer(feeds)
        assert len(caught.value.detail) < 300
        assert not re.search(r"/[\w.]+/", caught.value.detail)
        assert "\n" not in caught.value.detail
    assert engine.infer({"a": array(1, 2), "b": array(1, 2)})[0].tolist() == [[2, 4]]
    engine.close()


def test_a_closed_engine_says_so(open_engine: Open):
    """Closing twice does no harm; inferring afterwards is an error of ours, not a crash."""
    engine = open_engine(arithmetic())
    engine.close()
    engine.close()
    with pytest.raises(ModelFailedError):
        engine.infer({"a": array(1, 2), "b": array(1, 2)})


WRONG = {
    "empty": b"",
    "text": b"hello",
    "a zip, as PyTorch writes": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x02}q\x00." + bytes(100),
    "JSON": b'{"a": 1}',
    "zeros": bytes(1000),
    "cut off": arithmetic()[:-20],
    "cut in the middle": arithmetic()[: len(arithmetic()) // 2],
    "a message without a graph": b"\x08\x09\x12\x03abc",
    "ONNX Runtime's own format": b"\x18\x00\x00\x00ORTM" + bytes(100),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_model_is_refused(open_engine: Open, what: str):
    """Every other file is refused in a sentence that says what to do instead."""
    with pytest.raises(ModelRefusedError) as caught:
        open_engine(WRONG[what])
    assert "ONNX" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_a_graph_that_cannot_run_here_is_refused(open_engine: Open):
    """An operator that nobody knows is named."""
    with pytest.raises(ModelRefusedError, match="Frobnicate"):
        open_engine(
            model(
                helper.make_node("Frobnicate", ["in"], ["out"]),
                inputs=[("in", TensorProto.FLOAT, (1,))],
                outputs=[("out", TensorProto.FLOAT, (1,))],
            ).SerializeToString()
        )


def external(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    """Make a tensor's data lie in another file."""
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def weight() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(64, np.float32), "w")


def in_an_initializer(location: str) -> onnx.ModelProto:
    return model(
        helper.make_node("Add", ["in", "w"], ["out"]),
        inputs=[("in", TensorProto.FLOAT, (64,))],
        outputs=[("out", TensorProto.FLOAT, (64,))],
        initializers=[external(weight(), location)],
    )


def in_a_constant(location: str) -> onnx.ModelProto:
    made = model(
        helper.make_node("Constant", [], ["w"], value=weight()),
        helper.make_node("Add", ["in", "w"], ["out"]),
        inputs=[("in", TensorProto.FLOAT, (64,))],
        outputs=[("out", TensorProto.FLOAT, (64,))],
    )
    external(made.graph.node[0].attribute[0].t, location)
    return made


def in_a_branch(location: str) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("w2", TensorProto.FLOAT, (64,))
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["w2"])],
        "branch",
        [],
        [out],
        initializer=[external(weight(), location)],
    )
    return model(
        helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch),
        inputs=[("yes", TensorProto.BOOL, ())],
        outputs=[("out", TensorProto.FLOAT, (64,))],
    )


@pytest.mark.parametrize("build", [in_an_initializer, in_a_constant, in_a_branch])
def test_weights_in_other_files_are_never_opened(open_engine: Open, build, tmp_path, monkeypatch):
    """A path in a stranger's model is not followed, relative or absolute, even if it is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones(64, np.float32).tobytes())
    for location in ("weights.bin", str(tmp_path / "weights.bin"), "../weights.bin"):
        with pytest.raises(ModelRefusedError, match="external data"):
            open_engine(build(location).SerializeToString())


def test_the_word_location_alone_is_no_reason_to_refuse(open_engine: Open):
    """A graph whose tensors happen to be called so is opened."""
    engine = open_engine(
        model(
            helper.make_node("Add", ["location", "w"], ["out"]),
            inputs=[("location", TensorProto.FLOAT, (64,))],
            outputs=[("out", TensorProto.FLOAT, (64,))],
            initializers=[weight()],
        ).SerializeToString()
    )
    engine.close()
