"""A runtime serves with the engine and the precision that its spec asks for, and says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.runtime import Runtime, eventually

MODELS = Path(__file__).parents[2] / "src" / "polyolo" / "models"
BOARDS = sorted((MODELS / "samples").glob("*.jpg"))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    running = Runtime()
    running.add("board", (MODELS / "pcb-2.onnx").read_bytes())
    yield running
    running.close()


def skip_without_openvino() -> None:
    """Skip without importing it: outside of our engine it reports the import to its maker."""
    if find_spec("openvino") is None:
        pytest.skip("the engine openvino is not installed")


def ask(runtime: Runtime, **fields) -> None:
    runtime.models[0]["versions"][0].update(fields)


def served(runtime: Runtime) -> dict:
    answer = runtime.client.post(
        "/v1/detect", content=BOARDS[0].read_bytes(), headers={"content-type": "image/jpeg"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["detections"]
    (status,) = runtime.status()["models"]
    return status


def test_by_default_onnx_runtime_serves_in_float32(runtime: Runtime):
    """No trial, no second library."""
    runtime.start()
    status = served(runtime)
    assert (status["engine"], status["device"], status["precision"]) == (
        "onnxruntime",
        "cpu",
        "float32",
    )
    assert status["speed"] == status["quality"] == ""


def test_auto_tries_every_installed_engine(runtime: Runtime):
    """Both were measured, and either may have won; the winner serves in float32."""
    skip_without_openvino()
    ask(runtime, engine="auto")
    runtime.start()
    status = served(runtime)
    assert status["precision"] == "float32"
    assert "onnxruntime float32 " in status["speed"]
    assert "openvino float32 " in status["speed"]
    assert "failed" not in status["speed"]


def test_fast_is_checked_on_the_golden_pictures(runtime: Runtime):
    """Whichever way it went on this machine, the status has the figures and the decision."""
    skip_without_openvino()
    for board in BOARDS:
        (runtime.home / board.name).write_bytes(board.read_bytes())
    golden = [board.name for board in BOARDS]  # relative, as the models' uris
    ask(runtime, engine="openvino", precision="fast", golden=golden)
    runtime.start()
    status = served(runtime)
    if status["precision"] == "float32":
        assert "refused" in status["quality"] or "faster than float32" in status["quality"]
    else:
        assert "accepted" in status["quality"]
        assert f"in {len(BOARDS)} pictures" in status["quality"]


def test_golden_pictures_that_cannot_be_read_leave_it_at_float32(runtime: Runtime):
    """A check that cannot be made is not passed; the model serves, exactly."""
    skip_without_openvino()
    ask(runtime, engine="openvino", precision="fast", golden=["not-there.jpg"])
    runtime.start()
    status = served(runtime)
    assert status["precision"] == "float32"
    assert "not-there.jpg" in status["quality"]


def test_another_engine_is_a_hot_swap(runtime: Runtime):
    """A new engine for the same file is opened beside the old one; what fails changes nothing."""
    runtime.start()
    ask(runtime, engine="tensorflow")
    runtime.put_in_force()
    assert served(runtime)["state"] == "failed"
    skip_without_openvino()
    ask(runtime, engine="openvino")
    runtime.put_in_force()
    eventually(lambda: served(runtime)["engine"] == "openvino")


def test_no_engine_reports_to_its_maker():
    """ONNX Runtime's telemetry is off before it is loaded; OpenVINO's client is never imported."""
    code = (
        "import os, sys\n"
        "sys.addaudithook(lambda name, about: seen.append((about[0], dict(os.environ)))"
        " if name == 'import' and about[0] == 'onnxruntime' else None)\n"
        "seen = []\n"
        "import polyolo.serving.engines.onnxruntime\n"
        "assert seen[0][1]['ORT_DISABLE_TELEMETRY'] == '1', 'set too late'\n"
        "try:\n"
        "    import polyolo.serving.engines.openvino\n"
        "except ImportError as error:\n"
        "    assert error.name == 'openvino'\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
