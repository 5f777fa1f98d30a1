"""kill -9 at the worst moment: the neighbour feels nothing, and nothing is left behind."""

import os
import signal
import threading
import time
from http.client import HTTPConnection

import httpx

from polyolo.errors import PolyoloError
from tests.e2e.platform import eventually, processes_below


class Load:
    """Requests of one tenant in a closed loop on its own thread, with what came of each."""

    def __init__(self, url: str, key: str, body: bytes) -> None:
        self.answers: list[tuple[float, int, float, httpx.Headers]] = []
        self._stop = threading.Event()
        self._arguments = (url, key, body)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        url, key, body = self._arguments
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=10) as http:
            while not self._stop.is_set():
                started = time.monotonic()
                answer = http.post("/v1/detect", content=body)
                now = time.monotonic()
                self.answers.append((now, answer.status_code, now - started, answer.headers))
                self._stop.wait(0.005)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_killed_runtime_comes_back_and_its_neighbour_feels_nothing(platform, board):
    """The killed one gives 503 with Retry-After, then answers within 5 s; the other loses none."""
    victim, client = platform.tenant("victim")
    _, other = platform.tenant("neighbour")
    body = board.read_bytes()
    with client, other:
        client.detect(board)
        other.detect(board)
        with (
            Load(platform.url, client.api_key, body) as hit,
            Load(platform.url, other.api_key, body) as spared,
        ):
            eventually(lambda: len(hit.answers) > 10, within=10, what="load runs")
            killed = time.monotonic()
            os.kill(platform.runtime_pid(victim), signal.SIGKILL)
            eventually(
                lambda: any(at > killed + 0.2 and s == 200 for at, s, _, _ in hit.answers),
                within=5,
                what="the killed runtime answers again",
            )
    assert {status for _, status, _, _ in spared.answers} == {200}
    failed = [(status, took, headers) for _, status, took, headers in hit.answers if status != 200]
    assert {status for status, _, _ in failed} <= {503}
    assert all(int(headers["retry-after"]) >= 1 for _, _, headers in failed)
    assert all(took < 2 for _, took, _ in failed)


def test_a_killed_platform_leaves_no_process_and_serves_again(fresh_platform, board, tmp_path):
    """kill -9 of `polyolo up`: every child ends with it; a restart knows tenants, keys, models."""
    from polyolo.models import bundled

    fresh_platform.start()
    _, first = fresh_platform.tenant("first")
    _, second = fresh_platform.tenant("second")
    with first, second:
        second.push_model("boards", bundled("pcb", 1))
        before = [first.detect(board).detections, second.detect(board).detections]
        assert len(processes_below(fresh_platform.home)) >= 4  # up, gateway, two runtimes

        fresh_platform.process.kill()
        fresh_platform.process.wait()
        eventually(
            lambda: not processes_below(fresh_platform.home), within=5, what="every child is gone"
        )

        fresh_platform.start()
        operator_key = fresh_platform.operator_key
        after = [
            eventually(lambda c=c: _detections(c, board), within=5, what="served again")
            for c in (first, second)
        ]
        assert after == before
        assert second.detect(board).model.name == "boards"
        assert operator_key == fresh_platform.operator_key


def test_sigterm_drains_and_exits_with_zero(fresh_platform, board):
    """SIGTERM: what is in flight is answered, usage is kept, exit status 0, nothing left."""
    fresh_platform.start()
    _, client = fresh_platform.tenant("drained")
    picture = board.read_bytes()
    with client:
        client.detect(board)
        halves = [HTTPConnection("127.0.0.1", fresh_platform.port, timeout=30) for _ in range(8)]
        for half in halves:  # half of the picture now, the other half after the signal
            half.putrequest("POST", "/v1/detect")
            half.putheader("x-api-key", client.api_key)
            half.putheader("content-length", str(len(picture)))
            half.endheaders(picture[: len(picture) // 2])
        eventually(lambda: _in_flight(fresh_platform) == 8, within=5, what="work in flight")
        fresh_platform.process.terminate()
        eventually(lambda: not _listens(fresh_platform), within=5, what="the door is closed")
        for half in halves:
            half.send(picture[len(picture) // 2 :])
        assert [half.getresponse().status for half in halves] == [200] * 8
        for half in halves:
            half.close()
        assert fresh_platform.process.wait(timeout=40) == 0
        assert processes_below(fresh_platform.home) == []

        fresh_platform.start()
        assert client.usage().requests == 9


def _in_flight(platform) -> int:
    """Return how many requests of the tenant `drained` the gateway has not answered."""
    metrics = httpx.get(f"{platform.url}/metrics").text
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in metrics.splitlines()
        if line.startswith("polyolo_requests_in_flight{") and 'tenant="drained"' in line
    )


def _listens(platform) -> bool:
    """Say whether a new request is taken."""
    try:
        return httpx.get(f"{platform.url}/livez", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def _detections(client, board):
    try:
        return client.detect(board).detections
    except PolyoloError:
        return None


def test_a_home_is_used_by_one_platform_only(fresh_platform):
    """A second `polyolo up` on the same home is told so, and does no harm."""
    import subprocess

    from tests.e2e.platform import POLYOLO, free_port

    fresh_platform.start()
    second = subprocess.run(
        [POLYOLO, "up", "--home", fresh_platform.home, "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert str(fresh_platform.home) in second.stderr
    assert httpx.get(f"{fresh_platform.url}/readyz").status_code == 200
