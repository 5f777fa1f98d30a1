"""Models change under load: no failed request, no answer from a version that nobody wanted."""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.runtime import Runtime, ended, eventually, picture, yolov8

BEST = (0.9, 0.8, 0.7)  # what each version gives the dog: an answer shows who gave it


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("city", *(yolov8(best=best) for best in BEST))
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


class Connection(http.client.HTTPConnection):
    """One connection to a runtime's socket; cheap, since it shares the CPUs with what it asks."""

    def __init__(self, path: Path) -> None:
        super().__init__("runtime", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self.path))

    def ask(self, body: bytes, headers: dict[str, str] | None = None) -> Seen:
        sent = time.monotonic()
        self.request("POST", "/v1/detect", body, headers or {})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            return Seen(sent, time.monotonic(), 0, answer.status, text.decode())
        document = json.loads(text)
        best = document["detections"][0]["confidence"]
        return Seen(sent, time.monotonic(), document["model"]["version"], best)


@dataclass(frozen=True)
class Seen:
    """One answer: when it was asked for and had, which version gave it, and what it saw."""

    sent: float
    had: float
    version: int
    """0 for a failure, whose status stands in the place of what was seen."""
    best: float
    problem: str = ""


@contextmanager
def load(runtime: Runtime, connections: int = 4) -> Iterator[list[Seen]]:
    """Keep connections busy; collect every answer."""
    seen: list[Seen] = []
    stop = threading.Event()
    body = picture()

    def ask() -> None:
        with closing(Connection(runtime.socket)) as mine:
            while not stop.is_set():
                seen.append(mine.ask(body))

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def kinds(seen: list[Seen]) -> set[tuple[int, float]]:
    """Return which version was seen to give which confidence; (0, status) for a failure."""
    return {(one.version, one.best) for one in seen}


def out_of_turn(seen: list[Seen], swaps: list[tuple[float, float, int]]) -> list[Seen]:
    """Return the answers of a version that was neither the old nor the new.

    swaps: when each was asked for, when it was reported in force, and to which version; the
    first is the start. A version may answer from the former of its own to the latter of the next.
    """
    turns = [
        (begun, after[1], version)
        for (begun, _, version), after in pairwise([*swaps, (math.inf, math.inf, 0)])
    ]
    return [
        one
        for one in seen
        if not any(
            version == one.version and begun <= one.had and one.sent <= over
            for begun, over, version in turns
        )
    ]


@pytest.mark.timeout(300)  # a hundred processes start beside four clients that never pause
def test_a_hundred_swaps_under_load_fail_no_request_and_keep_nothing(runtime: Runtime):
    """Each answer comes whole from the version that it names, which is the old or the new one;
    the memory of all processes together, the descriptors and the processes stay as many."""
    assert runtime.process is not None
    swaps = [(0.0, 0.0, 1)]
    sizes: dict[int, tuple[int, int]] = {}
    with load(runtime) as seen:
        for number in range(1, 101):
            version = number % 2 + 1
            runtime.models[0]["current"] = version
            begun = time.monotonic()
            runtime.put_in_force()
            swaps.append((begun, time.monotonic(), version))
            had = len(seen)
            eventually(lambda had=had: len(seen) >= had + 8)
            if number in (10, 100):
                eventually(lambda: len(runtime.workers()) == 1)
                descriptors = len(list(Path(f"/proc/{runtime.process.pid}/fd").iterdir()))
                sizes[number] = runtime.memory(), descriptors
    assert kinds(seen) == {(1, 0.9), (2, 0.8)}
    assert out_of_turn(seen, swaps) == []
    assert len(seen) > 1000
    assert runtime.metric('polyolo_model_swaps_total{model="city",tenant="t_test"}') == 100
    assert sizes[100][0] < sizes[10][0] * 1.1, sizes
    assert sizes[100][1] <= sizes[10][1] + 2, sizes
    assert zombies(runtime.process.pid) == []


def test_the_check_for_the_turn_sees_an_answer_out_of_turn():
    """A version that answers after the next one was in force is found."""
    swaps = [(0.0, 0.0, 1), (10.0, 11.0, 2), (20.0, 21.0, 1)]
    right = [Seen(1, 2, 1, 0.9), Seen(9, 12, 2, 0.8), Seen(10.5, 10.6, 1, 0.9)]
    wrong = [Seen(12, 13, 1, 0.9), Seen(1, 2, 2, 0.8), Seen(22, 23, 2, 0.8), Seen(1, 2, 0, 500)]
    assert out_of_turn([*right, *wrong], swaps) == wrong


def zombies(parent: int) -> list[str]:
    """Return the children of a process that have ended and that it has not waited for."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in children if ended(int(pid))]


def test_a_swap_for_which_there_is_no_memory_is_refused_before_it_is_tried(runtime: Runtime):
    """A file too large to be opened beside the old version: said at once, in figures."""
    path = runtime.home / "large.onnx"
    with path.open("wb") as sparse:
        sparse.truncate(2**50 // 1024)  # a terabyte of nothing, which takes no disk
    runtime.models[0]["versions"].append(
        {"version": 4, "digest": "0" * 64, "uri": path.name, "classes": []}
    )
    runtime.models[0]["current"] = 4
    runtime.put_in_force()
    (fourth,) = (one for one in runtime.status()["models"] if one["version"] == 4)
    assert fourth["state"] == "failed"
    assert "takes about 3145792 MiB and" in fourth["reason"]
    assert runtime.detect(picture())["model"]["version"] == 1


def test_a_version_that_fails_to_load_leaves_the_old_one_serving(runtime: Runtime):
    """A file that was changed, one that is no model, one that is gone: each says why."""
    versions = runtime.models[0]["versions"]
    path = runtime.home / versions[1]["uri"]
    whole = path.read_bytes()
    with load(runtime) as seen:
        for spoil, reason in (
            (lambda: path.write_bytes(whole[:-9] + b"something"), "sha256"),
            (lambda: path.unlink(), "No such file"),
        ):
            spoil()
            runtime.models[0]["current"] = 2
            runtime.put_in_force()
            status = runtime.status()
            assert status["phase"] == "ready"
            states = {one["version"]: one for one in status["models"]}
            assert states[2]["state"] == "failed"
            assert reason in states[2]["reason"]
            assert str(runtime.home) not in states[2]["reason"]
            assert states[1]["state"] == "ready"
            refused = runtime.client.post("/v1/detect?model=city:2", content=picture())
            assert refused.status_code == 503
            assert reason in refused.json()["detail"]
        path.write_bytes(whole)
        runtime.put_in_force()
        assert runtime.detect(picture())["model"]["version"] == 2
    assert kinds(seen) <= {(1, 0.9), (2, 0.8)}


def test_settings_change_at_once_and_without_a_load(runtime: Runtime):
    """The next request after the answer to the change sees it."""
    runtime.models[0]["settings"] = {"classes": ["traffic light"]}
    runtime.put()
    assert [one["class_name"] for one in runtime.detect(picture())["detections"]] == [
        "traffic light"
    ]
    assert runtime.metric('polyolo_model_swaps_total{model="city",tenant="t_test"}') == 0


def test_a_new_default_model_and_a_deleted_one(runtime: Runtime):
    """What the spec names answers, and what it names no more is not found."""
    runtime.add("new", yolov8(best=0.7))
    runtime.models.reverse()
    runtime.put_in_force()
    assert runtime.detect(picture())["model"] == {"name": "new", "version": 1}
    assert runtime.detect(picture(), model="city")["model"]["name"] == "city"
    runtime.models.pop()
    runtime.put_in_force()
    gone = runtime.client.post("/v1/detect?model=city", content=picture())
    assert gone.status_code == 404


def test_an_older_spec_is_ignored(runtime: Runtime):
    """Specs may arrive out of order; the newest one stays in force."""
    old = runtime.spec()
    runtime.models[0]["current"] = 3
    runtime.put_in_force()
    runtime.put(old)
    assert runtime.detect(picture())["model"]["version"] == 3
    assert runtime.status()["observed_generation"] == runtime.generation


def test_a_runtime_whose_default_model_cannot_load_says_so():
    """It is live, not ready, and answers 503 with the reason."""
    runtime = Runtime()
    runtime.add("city", b"no model at all")
    try:
        runtime.start(ready=False)
        eventually(lambda: runtime.status()["observed_generation"] == 1)
        assert not runtime.answers("/readyz")
        status = runtime.status()
        assert status["phase"] == "starting"
        assert "not an ONNX model" in status["reason"]
        refused = runtime.client.post("/v1/detect", content=picture())
        assert refused.status_code == 503
        assert "not an ONNX model" in refused.json()["detail"]
    finally:
        runtime.close()
