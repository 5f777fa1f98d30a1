"""A runtime under pressure and at its end: overload, hang-ups, deadlines, draining, its parent."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration import troubled
from tests.integration.runtime import Runtime, ended, eventually, picture, slow, yolov8

WAITING = 'polyolo_queue_depth{model="slow",tenant="t_test"}'
IN_FLIGHT = 'polyolo_requests_in_flight{model="slow",tenant="t_test"}'
RUNS = 'polyolo_inference_duration_seconds_count{model="slow",tenant="t_test"}'


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("slow", slow(300))
    runtime.add("quick", yolov8())
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


def post(runtime: Runtime, **options) -> httpx.Response:
    """Detect on a connection of its own, with all the patience that is needed."""
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(runtime.socket)),
        base_url="http://runtime",
        timeout=90,
    ) as client:
        return client.post("/v1/detect", content=picture(), **options)


def send_only(runtime: Runtime) -> socket.socket:
    """Send a whole request and return the connection on which its answer would come."""
    body = picture()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(runtime.socket))
    head = f"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_too_much_is_refused_at_once_and_the_rest_is_answered(runtime: Runtime):
    """Beyond the queue's bound: 503 with Retry-After, quickly; what was taken on is answered."""
    connections = [send_only(runtime) for _ in range(140)]
    try:
        eventually(lambda: runtime.metric(WAITING) >= 120)
        refused = post(runtime)
        while refused.status_code == 200:  # a place had become free
            refused = post(runtime)
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:polyolo:error:overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert runtime.answers("/livez")
        assert runtime.answers("/readyz")
    finally:
        for connection in connections:
            connection.close()
    eventually(lambda: runtime.metric(WAITING) == 0)
    assert len(runtime.detect(picture(), model="quick")["detections"]) == 2


def test_pictures_on_their_way_in_are_bounded_too(runtime: Runtime):
    """Uploads that together would hold too much memory: the last is refused, small ones pass."""
    megabyte = 1024 * 1024
    head = f"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-length: {19 * megabyte}\r\n\r\n"
    connections = []
    try:
        for _ in range(3):
            connections.append(connection := socket.socket(socket.AF_UNIX))
            connection.connect(str(runtime.socket))
            connection.sendall(head.encode() + bytes(18 * megabyte))
        refused = runtime.client.post("/v1/detect", content=bytes(18 * megabyte))
        assert refused.status_code == 503
        assert "MiB" in refused.json()["detail"]
        runtime.detect(picture(), model="quick")
    finally:
        for connection in connections:
            connection.close()
    eventually(
        lambda: runtime.client.post("/v1/detect", content=bytes(18 * megabyte)).status_code == 415
    )


def test_a_client_that_hangs_up_takes_its_request_back(runtime: Runtime):
    """What had not begun is never done, and is counted as 499."""
    connections = [send_only(runtime) for _ in range(20)]
    eventually(lambda: runtime.metric(WAITING) >= 15)
    for connection in connections:
        connection.close()
    eventually(lambda: runtime.metric(IN_FLIGHT) == 0, within=3)
    assert runtime.metric(WAITING) == 0
    hung_up = 'polyolo_requests_total{code="499",model="slow",tenant="t_test"}'
    assert runtime.metric(hung_up) >= 15
    runtime.detect(picture(), model="quick")
    eventually(lambda: runtime.metric(RUNS) <= 6)


def test_a_request_past_its_deadline_gets_504_and_is_not_done(runtime: Runtime):
    """The caller's own deadline counts from the request's start, the time in the queue included."""
    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(post, runtime) for _ in range(6)]
        eventually(lambda: runtime.metric(IN_FLIGHT) >= 6)
        late = post(runtime, headers={"polyolo-timeout-ms": "150"})
        assert late.status_code == 504
        assert "0.15 s" in late.json()["detail"]
        assert [one.result().status_code for one in busy] == [200] * 6
    eventually(lambda: runtime.metric(RUNS) == 6)


def test_sigterm_answers_what_is_in_flight_and_exits_0(runtime: Runtime):
    """A drained runtime has cost nobody an answer, and takes no new connection meanwhile."""
    assert runtime.process is not None
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, runtime) for _ in range(8)]
        eventually(lambda: runtime.metric(IN_FLIGHT) == 8)
        runtime.process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in asked] == [200] * 8
    assert runtime.process.wait(20) == 0
    assert "Traceback" not in runtime.log()


def test_no_runtime_outlives_its_parent():
    """A runtime whose parent is killed is killed by the kernel."""
    runtime = Runtime()
    runtime.add("quick", yolov8())
    (runtime.home / "spec.json").write_text(json.dumps(runtime.spec()))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(runtime.home / "spec.json"), str(runtime.socket)],
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        runtime.process = parent
        eventually(lambda: runtime.answers("/readyz"))
        parent.kill()
        parent.wait()
        eventually(lambda: ended(child), within=5)
    finally:
        parent.stdout.close()
        runtime.close()


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "polyolo.serving", "--spec", sys.argv[1], "--socket", sys.argv[2]],
    env={**os.environ, "POLYOLO_PARENT": str(os.getpid())},
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
print(child.pid, flush=True)
child.wait()
"""


def test_a_sigterm_while_a_model_loads_ends_it_too():
    """The runtime exits with 0 at once, though the load would go on for two minutes."""
    runtime = Runtime()
    runtime.add("quick", yolov8())
    runtime.add("slow", troubled.hangs(above=0))
    try:
        runtime.start()
        opening = eventually(lambda: runtime.workers()[1:])
        assert runtime.detect(picture(), model="quick")
        asked = time.monotonic()
        assert runtime.stop() == 0
        assert time.monotonic() - asked < 5
        eventually(lambda: all(ended(pid) for pid in opening), within=5)
        assert "Traceback" not in runtime.log()
        assert "never retrieved" not in runtime.log()
    finally:
        runtime.close()


def test_a_runtime_that_is_killed_takes_its_models_along():
    """Those that serve and one that is just opening: the kernel ends them all."""
    runtime = Runtime()
    runtime.add("quick", yolov8())
    runtime.add("slow", troubled.hangs(above=0))
    try:
        runtime.start()
        models = eventually(lambda: len(runtime.workers()) == 2 and runtime.workers())
        assert runtime.process is not None
        runtime.process.kill()
        runtime.process.wait()
        eventually(lambda: all(ended(pid) for pid in models), within=5)
    finally:
        runtime.close()


def test_a_start_that_cannot_work_says_why_and_exits_1(tmp_path):
    """A missing spec, one that is none, and a missing flag end in a sentence, not a traceback."""
    (tmp_path / "bad.json").write_text('{"tenant": 1}')
    for arguments, status, named in (
        (["--spec", str(tmp_path / "none.json")], 1, "No such file"),
        (["--spec", str(tmp_path / "bad.json")], 1, "tenant"),
        ([], 2, "--spec"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "polyolo.serving", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == status
        assert named in done.stderr
        assert "Traceback" not in done.stderr
