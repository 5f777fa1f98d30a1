"""Models change under load: no failed request, no answer from a version that nobody wanted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.integration.runtime import Runtime, eventually, picture, yolov8

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


@contextmanager
def load(runtime: Runtime, connections: int = 4) -> Iterator[Counter]:
    """Keep connections busy; count (version said, confidence seen) and failures."""
    seen: Counter = Counter()
    stop = threading.Event()
    body = picture()

    def ask() -> None:
        transport = httpx.HTTPTransport(uds=str(runtime.socket))
        with httpx.Client(transport=transport, base_url="http://runtime", timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/v1/detect", content=body)
                if answer.status_code != 200:
                    seen[f"failed {answer.status_code}"] += 1
                    continue
                document = answer.json()
                best = document["detections"][0]["confidence"]
                seen[document["model"]["version"], best] += 1

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_swap_under_load_fails_no_request(runtime: Runtime):
    """Each answer comes whole from the version that it names, and after the swap from the new."""
    with load(runtime) as seen:
        for round_ in range(6):
            current = round_ % 2 + 1
            runtime.models[0]["current"] = 3 - current
            runtime.put_in_force()
            assert runtime.detect(picture())["model"]["version"] == 3 - current
            after = sum(seen.values())
            eventually(lambda after=after: sum(seen.values()) > after + 20)
    assert set(seen) == {(1, 0.9), (2, 0.8)}, seen
    swaps = runtime.metric('polyolo_model_swaps_total{model="city",tenant="t_test"}')
    assert swaps == 6


def test_memory_does_not_grow_with_swaps(runtime: Runtime):
    """What was swapped out is freed."""

    def swap(times: int) -> None:
        for _ in range(times):
            runtime.models[0]["current"] = 3 - runtime.models[0]["current"]
            runtime.put_in_force()
            runtime.detect(picture())

    swap(10)
    before = runtime.resident()
    swap(40)
    assert runtime.resident() < before * 1.05


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
    assert set(seen) <= {(1, 0.9), (2, 0.8)}, seen


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
