"""One tenant's runtime as a process of its own, on a Unix socket, with models made for tests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit import graphs

SHARED = Path(__file__).parents[2].parent / "shared"


def eventually(look: Callable[[], Any], *, within: float = 20.0, what: str = "") -> Any:
    """Return what `look` sees as soon as it is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {what or look}")
        time.sleep(0.01)
    return seen


def ended(pid: int) -> bool:
    """Return whether a process is gone, or waits only to be reaped."""
    return _stat(pid)[:1] in ([], ["Z"])


def started(pid: int) -> int:
    """Return when a process was started, in clock ticks; 0 for one that is gone."""
    return int((_stat(pid) or ["0"] * 20)[19])


def _memory(pid: int) -> int:
    for file, line in (("smaps_rollup", "Pss:"), ("status", "RssAnon:")):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
            return int(next(one.split()[1] for one in lines if one.startswith(line))) * 1024
    return 0


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the command; none for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Runtime:
    """A runtime process in a directory of its own. `models` is what its spec says."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: its length would not leave room for the socket's name.
        self.home = Path(tempfile.mkdtemp(prefix="polyolo-rt-"))
        self.socket = self.home / "runtime.sock"
        self.generation = 0
        self.models: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://runtime",
            timeout=30,
        )

    def add(
        self, name: str, *files: bytes, current: int = 1, classes: Sequence[str] = (), **settings
    ) -> None:
        """Add a model with these files as its versions to the spec, or replace it."""
        versions = []
        for number, data in enumerate(files, start=1):
            digest = hashlib.sha256(data).hexdigest()
            (self.home / f"{digest}.onnx").write_bytes(data)
            versions.append(
                {
                    "version": number,
                    "digest": digest,
                    "uri": f"{digest}.onnx",
                    "classes": list(classes),
                }
            )
        model = {"name": name, "current": current, "versions": versions, "settings": settings}
        self.models = [one for one in self.models if one["name"] != name] + [model]

    def spec(self) -> dict[str, Any]:
        """Return the next spec document."""
        self.generation += 1
        return {
            "tenant": "t_test",
            "generation": self.generation,
            "default_model": self.models[0]["name"],
            "models": self.models,
        }

    def start(self, *options: str, ready: bool = True) -> None:
        """Start the process with the spec as it stands, and wait until it is ready."""
        (self.home / "spec.json").write_text(json.dumps(self.spec()))
        command = [sys.executable, "-m", "polyolo.serving", "--spec", str(self.home / "spec.json")]
        command += ["--socket", str(self.socket), *options]
        with (self.home / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log)
        eventually(lambda: self.answers("/readyz" if ready else "/livez"), what=self.log())

    def answers(self, path: str) -> bool:
        """Return whether a GET of the path gives 200."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaves a refused socket open
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return self.client.get(path).status_code == 200

    def put(self, spec: dict[str, Any] | None = None) -> int:
        """Send a new spec and return its generation."""
        document = self.spec() if spec is None else spec
        answer = self.client.put("/runtime/spec", json=document)
        assert answer.status_code == 202, answer.text
        return int(document["generation"])

    def put_in_force(self) -> None:
        """Send the spec as it stands and wait until the runtime reports it."""
        generation = self.put()
        eventually(lambda: self.status()["observed_generation"] == generation)

    def status(self) -> dict[str, Any]:
        """Return the runtime's own report."""
        return self.client.get("/runtime/status").json()

    def detect(self, picture: bytes, **query: Any) -> dict[str, Any]:
        """Detect and return the answer, which must be a good one."""
        answer = self.client.post("/v1/detect", content=picture, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, line: str) -> float:
        """Return the value of one line of /metrics, 0 where it is not there."""
        for seen in self.client.get("/metrics").text.splitlines():
            if seen.startswith(line + " "):
                return float(seen.rpartition(" ")[2])
        return 0.0

    def resident(self) -> int:
        """Return the bytes of memory that the process really uses."""
        assert self.process is not None
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def memory(self) -> int:
        """Return the bytes that the runtime and its models' processes take together.

        Shared pages are counted once where the kernel tells (PSS), and not at all where it
        tells only root.
        """
        assert self.process is not None
        return sum(_memory(pid) for pid in (self.process.pid, *self.workers()))

    def workers(self) -> list[int]:
        """Return the ids of the models' processes, the oldest first."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        found = [
            int(pid)
            for children in tasks.glob("*/children")
            for pid in children.read_text().split()
            if not ended(int(pid))
        ]
        return sorted(found, key=lambda pid: (started(pid), pid))

    def log(self) -> str:
        """Return what the process wrote to stderr."""
        return (self.home / "log").read_text()

    def stop(self) -> int:
        """Ask the process to end and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        """End the process, whatever it does, and remove its directory."""
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home)


def picture(width: int = 128, height: int = 96) -> bytes:
    """Return a JPEG of coloured noise."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


NAMES = {"names": "{0: 'cat', 1: 'dog', 2: 'traffic light'}"}


def yolov8(*, best: float = 0.9, metadata: dict[str, str] | None = None) -> bytes:
    """Return a YOLOv8 that sees a dog and a traffic light everywhere.

    best: confidence of the dog, to tell one version from another by its answer.
    """
    out = graphs.yolov8()
    out[0, 5, graphs.AT[0]] = best
    return graphs.graph({"output0": out}, metadata=NAMES if metadata is None else metadata)


def yolox() -> bytes:
    """Return a YOLOX that sees the same scene."""
    return graphs.graph({"output": graphs.yolox()})


def slow(milliseconds: int) -> bytes:
    """Return a YOLOv8 whose every run takes about so long (2 ms a product on a server's core)."""
    side, products = 512, max(1, milliseconds // 2)
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["weight", "mean"], ["p0"]),
        *(
            helper.make_node("MatMul", [f"p{step}", "weight"], [f"p{step + 1}"])
            for step in range(products)
        ),
        helper.make_node("ReduceMax", [f"p{products}"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["none"]),
        helper.make_node("Add", ["none", "scene"], ["output0"]),
    ]
    weight = np.full((side, side), 1 / side, np.float32)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "slow",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 7, graphs.PLACES))],
            initializer=[
                numpy_helper.from_array(weight, "weight"),
                numpy_helper.from_array(np.array([0, 1, 2, 3]), "axes"),
                numpy_helper.from_array(np.float32(0), "zero"),
                numpy_helper.from_array(graphs.yolov8(), "scene"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, NAMES)
    onnx.checker.check_model(model)
    return model.SerializeToString()
