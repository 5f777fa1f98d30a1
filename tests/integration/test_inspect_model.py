"""`python -m polyolo.serving inspect FILE`: what a file holds, or why it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.runtime import NAMES, SHARED, yolov8
from tests.unit import graphs


def inspect(path: Path, *options: str) -> tuple[int, dict]:
    """Run the command and return its exit status and the one object that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "polyolo.serving", "inspect", str(path), *options],
        capture_output=True,
        timeout=60,
    )
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_a_good_file_says_what_it_holds(file: Path):
    """Family, class names, input shape, opset; what it says of itself as one line each."""
    file.write_bytes(yolov8(metadata=NAMES | {"license": "MIT\n\x1b[2Jterms " + "x" * 500}))
    status, found = inspect(file)
    assert status == 0
    licence = found.pop("licence")
    assert licence.startswith("MIT [2Jterms xxx")
    assert len(licence) == 200
    assert found == {
        "family": "yolov8",
        "classes": ["cat", "dog", "traffic light"],
        "input": [1, 3, 64, 64],
        "producer": "",
        "opset": 18,
    }


def test_names_may_be_supplied(file: Path):
    """Without names of its own a file takes those given, else class_0 …."""
    file.write_bytes(yolov8(metadata={}))
    assert inspect(file)[1]["classes"] == ["class_0", "class_1", "class_2"]
    options = [part for name in ("a", "b", "c") for part in ("--classes", name)]
    assert inspect(file, *options)[1]["classes"] == ["a", "b", "c"]
    status, refused = inspect(file, "--classes", "a")
    assert status == 1
    assert "1 class names" in refused["refused"]


def test_yolox_nano_is_recognised():
    """The real model, which carries no names."""
    path = SHARED / "models/yolox_nano.onnx"
    if not path.exists():
        pytest.skip("needs ../shared/models/yolox_nano.onnx, which is not part of the project")
    status, found = inspect(path)
    assert status == 0
    assert (found["family"], found["input"]) == ("yolox", [1, 3, 416, 416])
    assert len(found["classes"]) == 80


def nan() -> bytes:
    out = graphs.yolov8()
    out[0, 0, 0] = np.nan
    return graphs.graph({"output0": out}, metadata=NAMES)


def classifier() -> bytes:
    return graphs.graph({"logits": np.zeros((1, 1000), np.float32)})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(50), "export the model to ONNX"),
        (b"\x80\x02" + bytes(50), "pickle"),
        (b"hello world", "not an ONNX model"),
        (yolov8()[:-30], "not an ONNX model"),
        (nan(), "fails on a test picture"),
        (classifier(), "logits"),
    ],
    ids=["empty", "zip", "pickle", "text", "cut off", "NaN", "classifier"],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(file: Path, data: bytes, reason: str):
    """Exit status 1 and the reason; nothing on stderr, no path of this machine."""
    file.write_bytes(data)
    status, found = inspect(file)
    assert status == 1
    assert found.keys() - {"checkpoint"} == {"refused"}
    assert ("checkpoint" in found) == data.startswith(b"\x80")
    assert reason in found["refused"]
    assert str(file.parent) not in found["refused"]


def test_a_file_that_is_not_there_is_refused(file: Path):
    """The reason is the system's, in a sentence."""
    assert inspect(file) == (1, {"refused": "the file cannot be read: No such file or directory"})
