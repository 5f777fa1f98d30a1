"""The SDK and `polyolo detect` against a real runtime that serves the bundled models."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import msgspec
import numpy as np
import pytest

from polyolo.client import AsyncClient, Client
from polyolo.errors import NotFoundError, UnsupportedImageError
from polyolo.models import bundled, sample_boards
from polyolo.types import DetectAnswer, ModelSpec, RuntimeSpec, VersionSpec


def version(number: int) -> VersionSpec:
    path = bundled("pcb", number)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return VersionSpec(version=number, digest=digest, uri=str(path))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Iterator[str]:
    """Give the URL of a runtime that serves pcb:2, and pcb:1 by name."""
    model = ModelSpec(name="pcb", current=2, versions=(version(1), version(2)))
    spec = RuntimeSpec(tenant="t_1", generation=1, default_model="pcb", models=(model,))
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "polyolo.serving", "--spec", folder / "spec.json"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while not ready(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def polyolo(url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"POLYOLO_URL": url, "POLYOLO_API_KEY": "pk_none_needed"}
    return subprocess.run(
        [sys.executable, "-m", "polyolo", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_sync_async_and_command_give_the_same_boxes(runtime):
    """Three ways in, one answer, for every sample board and both versions."""

    async def ask(board: Path, model: str) -> object:
        async with AsyncClient(runtime) as client:
            return (await client.detect(board, model=model)).detections

    for model in ("pcb:1", "pcb:2"):
        done = polyolo(runtime, "detect", *sample_boards(), "--model", model, "--json")
        assert done.returncode == 0, done.stderr
        documents = json.loads(done.stdout)
        with Client(runtime) as client:
            for board, document in zip(sample_boards(), documents, strict=True):
                answer = client.detect(board.read_bytes(), model=model)
                assert str(answer.model) == model
                assert msgspec.convert(document, DetectAnswer).detections == answer.detections
                assert asyncio.run(ask(board, model)) == answer.detections
                if model == "pcb:2":
                    assert answer.detections


def test_parameters_reach_the_model(runtime):
    """Confidence, classes and maximum of the command narrow what the runtime finds."""
    board = sample_boards()[0]
    with Client(runtime) as client:
        found = client.detect(board).detections
        wanted = [d for d in found if d.class_name == found[0].class_name and d.confidence >= 0.5]
        options = {"confidence": 0.5, "classes": [found[0].class_name]}
        assert list(client.detect(board, **options).detections) == wanted
        assert client.detect(board, max_detections=2).detections == found[:2]


def test_the_saved_picture_has_the_boxes_drawn_in(runtime, tmp_path):
    """--save writes a picture of the same size that differs where the boxes are."""
    board = sample_boards()[0]
    done = polyolo(runtime, "detect", board, "--save", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)
    drawn, original = cv2.imread(document["annotated"]), cv2.imread(str(board))
    assert drawn.shape == original.shape
    changed = np.abs(drawn.astype(int) - original.astype(int)).max(axis=2) > 60
    x1, y1, x2, y2 = (round(edge) for edge in document["detections"][0]["bbox"])
    assert changed[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2].any()
    assert changed.mean() < 0.2, "the rest is the picture as it was"


def test_the_runtimes_errors_arrive_as_what_they_are(runtime, tmp_path):
    """A missing model and a file that is no picture, in the SDK and at the command line."""
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with Client(runtime) as client:
        with pytest.raises(NotFoundError):
            client.detect(sample_boards()[0], model="nonsuch")
        with pytest.raises(UnsupportedImageError):
            client.detect(text)
    done = polyolo(runtime, "detect", text, sample_boards()[0])
    assert done.returncode == 1
    assert "board-1.jpg" in done.stdout
    assert done.stderr.count("\n") == 2
    assert str(text) in done.stderr


def test_a_load_test_of_a_runtime(runtime):
    """Each answer is counted, and the runtime's own times lie within what is seen from here."""
    done = polyolo(runtime, "bench", "--requests", "12", "--in-flight", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["images"] == 12
    assert report["refused"] == {}
    assert 0 < report["runtime_ms"]["inference"]["p50"] <= report["runtime_ms"]["total"]["p50"]
    assert report["runtime_ms"]["total"]["p50"] <= report["latency_ms"]["p50"]
