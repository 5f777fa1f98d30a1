"""What the PyTorch engine opens, and what it never does; skipped where PyTorch is not installed.

PyTorch is too large for CI: run these with `pip install 'polyolo[torch]'`.
"""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving import engines, loading, torchfile
from polyolo.serving.heads import TensorInfo
from tests.unit import graphs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

ABOUT = json.dumps({"imgsz": [64, 64], "batch": 1, "names": {"0": "a", "1": "b", "2": "c"}})
NOTES = {"config.txt": ABOUT}


class Detector(torch.nn.Module):
    """A YOLOv8 head's output, whatever the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("out", torch.from_numpy(graphs.yolov8()))
        self.conv = torch.nn.Conv2d(3, 1, 1)

    def forward(self, images):
        return self.out + 0 * self.conv(images).mean()


def exported(about: str = ABOUT) -> bytes:
    program = torch.export.export(Detector(), (torch.zeros(1, 3, 64, 64),))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"config.txt": about})
    return file.getvalue()


def scripted(notes=NOTES) -> bytes:
    file = io.BytesIO()
    script = torch.jit.trace(Detector(), torch.zeros(1, 3, 64, 64))
    torch.jit.save(script, file, _extra_files=dict(notes))
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save(Detector(), file)
    return file.getvalue()


@pytest.fixture
def _trusted(monkeypatch):
    monkeypatch.setenv("POLYOLO_TRUST_TORCH", "1")


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("build", [exported, scripted])
@pytest.mark.usefixtures("_trusted")
def test_both_kinds_of_archive_serve(build):
    """The file's own table of contents tells its kind; the boxes are those of the graph."""
    data = build()
    assert engines.able(data) == ("torch",)
    detector = loading.open_detector(data, family=None, classes=())
    assert detector.engine.name == "torch"
    assert detector.head.family == "yolov8"
    assert detector.names == ("a", "b", "c")
    assert detector.engine.signature.inputs[0].shape == (1, 3, 64, 64)
    assert detector.engine.signature.outputs == (
        TensorInfo(name="output0", shape=(1, 7, 84), dtype="float32"),
    )
    (out,) = detector.engine.infer({detector.head.input.name: np.zeros((1, 3, 64, 64), np.float32)})
    assert np.array_equal(out, graphs.yolov8())
    detector.engine.close()
    detector.engine.close()
    with pytest.raises(ModelFailedError):
        detector.engine.infer({detector.head.input.name: np.zeros((1, 3, 64, 64), np.float32)})


@pytest.mark.parametrize("build", [exported, scripted])
def test_programs_run_only_where_the_operator_trusts_them(build, monkeypatch):
    """By default a program is refused before PyTorch sees it, and the sentence says what to do."""
    monkeypatch.delenv("POLYOLO_TRUST_TORCH", raising=False)
    with pytest.raises(ModelRefusedError, match=r"program.*ONNX"):
        loading.open_detector(build(), family=None, classes=())


@pytest.mark.usefixtures("_trusted")
def test_pickles_are_never_opened():
    """A checkpoint and a bare pickle are refused even then."""
    for data in (checkpoint(), pickle.dumps({"a": 1})):
        assert torchfile.kind(data) is None
        with pytest.raises(ModelRefusedError, match="ONNX"):
            loading.open_detector(data, family=None, classes=())
        with pytest.raises(ModelRefusedError, match="pickles are never opened"):
            engines.open_engine("torch", data)


@pytest.mark.usefixtures("_trusted")
def test_a_script_must_say_its_size():
    """TorchScript keeps no shapes: without its exporter's notes it is refused."""
    with pytest.raises(ModelRefusedError, match="input size"):
        loading.open_detector(scripted({}), family=None, classes=())


@pytest.mark.usefixtures("_trusted")
def test_bfloat16_comes_out_as_float32():
    """Whatever it computes in, the outputs are arrays that numpy knows."""
    options = engines.Options(arithmetic="bfloat16")
    engine = engines.open_engine("torch", exported(), options)
    (out,) = engine.infer({"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert out.dtype == np.float32
    engine.close()
