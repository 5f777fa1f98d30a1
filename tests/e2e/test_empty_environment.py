"""The wheel in an environment where nothing else is: `pip install polyolo[serving]` serves."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.platform import eventually

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(400)  # the first test installs a hundred megabytes


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """Give an environment with the wheel and what the serving extra locks, and nothing else."""
    place = tmp_path_factory.mktemp("empty")

    def run(*command: object) -> None:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, ROOT)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", place / "venv")
    pip = [place / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--require-hashes", "-r", ROOT / "requirements/serving.txt")
    run(*pip, "--no-deps", wheel)
    return place / "venv"


def package(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages/polyolo")
    return found


@contextmanager
def runtime(environment: Path, overlay: Path | None = None) -> Iterator[httpx.Client]:
    """Run a runtime with the model that ships in the wheel; give a client of its socket."""
    home = Path(tempfile.mkdtemp(prefix="polyolo-empty-"))
    model = package(environment) / "models/pcb-2.onnx"
    version = {
        "version": 1,
        "digest": hashlib.sha256(model.read_bytes()).hexdigest(),
        "uri": str(model),
    }
    spec = {
        "tenant": "t_empty",
        "generation": 1,
        "default_model": "pcb",
        "models": [{"name": "pcb", "current": 1, "versions": [version]}],
    }
    (home / "spec.json").write_text(json.dumps(spec))
    process = subprocess.Popen(
        [
            environment / "bin/python",
            *("-m", "polyolo.serving"),
            *("--spec", home / "spec.json", "--socket", home / "s.sock"),
        ],
        cwd=home,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(overlay or "")},
        stderr=subprocess.PIPE,
        text=True,
    )
    transport = httpx.HTTPTransport(uds=str(home / "s.sock"))
    try:
        with httpx.Client(transport=transport, base_url="http://runtime", timeout=20) as http:

            def ready() -> bool:
                assert process.poll() is None, process.stderr.read()
                return (home / "s.sock").exists() and http.get("/readyz").status_code == 200

            eventually(ready, within=30, what="the runtime is ready")
            yield http
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
        shutil.rmtree(home)


def test_the_serving_extra_alone_serves_a_picture(environment, board):
    """The wheel and its locked serving libraries find the defects of a sample board."""
    with runtime(environment) as http:
        answer = http.post("/v1/detect", content=board.read_bytes())
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["detections"]) >= 5


@pytest.mark.parametrize("library", ["sqlalchemy", "fastapi", "aiohttp"])
def test_a_library_of_another_process_in_serving_is_noticed(environment, tmp_path, library):
    """The check above fails once serving imports what only control or the gateway have."""
    shutil.copytree(package(environment), tmp_path / "polyolo")
    planted = tmp_path / "polyolo/serving/app.py"
    text = planted.read_text()
    marker = "from __future__ import annotations\n"
    planted.write_text(text.replace(marker, f"{marker}import {library}\n"))
    with (
        pytest.raises(AssertionError, match=f"No module named '{library}'"),
        runtime(environment, overlay=tmp_path),
    ):
        pass
