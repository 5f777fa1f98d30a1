"""What a model does to its process it does to itself: crash, hang, NaN, hunger for memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration import troubled
from tests.integration.runtime import Runtime, eventually, yolov8

GREY = troubled.picture(white=False)
WHITE = troubled.picture(white=True)


@contextmanager
def serving(frail: bytes, *options: str) -> Iterator[Runtime]:
    """Run a runtime with two models: one that may fail, and one that must not notice."""
    runtime = Runtime()
    runtime.add("frail", frail)
    runtime.add("steady", yolov8())
    try:
        runtime.start(*options)
        eventually(lambda: runtime.status()["observed_generation"] == 1)
        yield runtime
        assert runtime.stop() == 0
        assert "Traceback" not in runtime.log()
    finally:
        runtime.close()


def client(runtime: Runtime) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(runtime.socket))
    return httpx.Client(transport=transport, base_url="http://runtime", timeout=60)


@contextmanager
def load(runtime: Runtime, connections: dict[str, int]) -> Iterator[dict[str, Counter]]:
    """Keep so many connections busy for each model; count (status, problem type) for each."""
    seen: dict[str, Counter] = defaultdict(Counter)
    stop = threading.Event()

    def ask(model: str) -> None:
        with client(runtime) as mine:
            while not stop.is_set():
                answer = mine.post(f"/v1/detect?model={model}", content=GREY)
                good = answer.status_code == 200 and len(answer.json()["detections"]) == 2
                seen[model]["good" if good else (answer.status_code, kind(answer))] += 1

    threads = [
        threading.Thread(target=ask, args=(model,))
        for model, count in connections.items()
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def kind(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["type"].rpartition(":")[2]


def pids(runtime: Runtime) -> list[int]:
    """Return the models' processes, the oldest first."""
    return runtime.workers()


def state(runtime: Runtime, name: str) -> dict:
    return next(one for one in runtime.status()["models"] if one["name"] == name)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_only_what_the_model_had_in_flight(how: signal.Signals):
    """Its batches under way get 500, its queue waits for the restart, the other model is fine."""
    with serving(yolov8()) as runtime:
        frail, steady = pids(runtime)
        streams = len(os.sched_getaffinity(0))
        with load(runtime, {"frail": 6, "steady": 2}) as seen:
            eventually(lambda: min(seen["frail"]["good"], seen["steady"]["good"]) > 30)
            before = seen["frail"]["good"]
            os.kill(frail, how)
            killed = time.monotonic()
            eventually(lambda: len(pids(runtime)) == 2 and frail not in pids(runtime))
            eventually(lambda: seen["frail"]["good"] > before + 30)
            took = time.monotonic() - killed
        failed = sum(count for what, count in seen["frail"].items() if what != "good")
        assert set(seen["frail"]) <= {"good", (500, "model-failed")}, seen
        assert failed <= streams, seen
        assert set(seen["steady"]) == {"good"}, seen
        assert steady in pids(runtime)
        assert took < 5, "the restart is at once; it took 0.3 s on two cores in use"
        assert state(runtime, "frail")["state"] == "ready"
        assert how.name in runtime.log()


def test_five_crashes_in_a_minute_take_a_model_down_and_no_other():
    """503 with the wait and the reason, in the answer and in the status; the runtime is ready."""
    with serving(yolov8()) as runtime, load(runtime, {"steady": 1}) as seen:
        gone: set[int] = {pids(runtime)[1]}  # the steady one
        for _ in range(5):
            pid = eventually(lambda: next((p for p in pids(runtime) if p not in gone), None))
            gone.add(pid)
            os.kill(pid, signal.SIGSEGV)
        eventually(lambda: state(runtime, "frail")["state"] == "failed")
        assert "ended 5 times" in state(runtime, "frail")["reason"]
        assert "SIGSEGV" in state(runtime, "frail")["reason"]
        refused = runtime.client.post("/v1/detect", content=GREY)
        assert (refused.status_code, kind(refused)) == (503, "not-ready")
        assert 20 <= int(refused.headers["retry-after"]) <= 30
        assert "ended 5 times" in refused.json()["detail"]
        assert runtime.answers("/readyz")
        assert runtime.answers("/livez")
        assert state(runtime, "steady")["state"] == "ready"
    assert set(seen["steady"]) == {"good"}


def test_a_model_that_is_down_can_be_swapped_out():
    """Another version in its place answers at once; nobody waits for the pause to end."""
    with serving(yolov8()) as runtime:
        steady = pids(runtime)[1]
        gone = {steady}
        for _ in range(5):
            pid = eventually(lambda: next((p for p in pids(runtime) if p not in gone), None))
            gone.add(pid)
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: state(runtime, "frail")["state"] == "failed")
        runtime.add("frail", yolov8(best=0.7))
        runtime.models.reverse()  # the first is the default
        runtime.put_in_force()
        assert runtime.detect(GREY, model="frail")["detections"][0]["confidence"] == 0.7


def test_a_picture_on_which_a_model_hangs_fails_alone():
    """It gets 500 when its time is over; what ran beside it and what waited is answered."""
    with serving(troubled.hangs(), "--stuck-after", "1") as runtime:
        frail, steady = pids(runtime)
        with load(runtime, {"frail": 4, "steady": 2}) as seen:
            eventually(lambda: seen["frail"]["good"] > 10)
            started = time.monotonic()
            with client(runtime) as mine:
                stuck = mine.post("/v1/detect?model=frail", content=WHITE)
            took = time.monotonic() - started
            after = seen["frail"]["good"]
            eventually(lambda: seen["frail"]["good"] > after + 10)
        assert (stuck.status_code, kind(stuck)) == (500, "model-failed")
        assert "no answer within 1 s" in stuck.json()["detail"]
        assert 1 <= took < 3
        assert {model: set(counted) for model, counted in seen.items()} == {
            "frail": {"good"},
            "steady": {"good"},
        }, seen
        assert frail not in pids(runtime)
        assert steady in pids(runtime)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [(troubled.no_numbers, "not finite numbers"), (troubled.too_large, "failed in this model")],
)
def test_a_picture_on_which_a_model_fails_fails_alone(graph, reason: str):
    """NaN, or more memory than there is: 500 for that picture; the process goes on."""
    with serving(graph()) as runtime:
        before = pids(runtime)
        with load(runtime, {"frail": 3, "steady": 1}) as seen, client(runtime) as mine:
            for _ in range(5):
                failed = mine.post("/v1/detect?model=frail", content=WHITE)
                assert (failed.status_code, kind(failed)) == (500, "model-failed")
                assert reason in failed.json()["detail"]
            good = {name: seen[name]["good"] for name in ("frail", "steady")}
            eventually(lambda: all(seen[name]["good"] > count + 5 for name, count in good.items()))
        assert {model: set(counted) for model, counted in seen.items()} == {
            "frail": {"good"},
            "steady": {"good"},
        }, seen
        assert pids(runtime) == before


def test_a_model_that_crashes_while_it_opens_is_refused_and_the_old_one_serves():
    """The status says what became of the process that tried."""
    with serving(yolov8(best=0.9)) as runtime, load(runtime, {"frail": 2}) as seen:
        eventually(lambda: seen["frail"]["good"] > 5)
        before = set(pids(runtime))
        runtime.add("frail", yolov8(best=0.9), yolov8(best=0.8), current=2)
        runtime.models.reverse()
        runtime.put()
        opening = eventually(lambda: set(pids(runtime)) - before).pop()
        os.kill(opening, signal.SIGSEGV)
        eventually(lambda: runtime.status()["observed_generation"] == runtime.generation)
        second = next(
            one
            for one in runtime.status()["models"]
            if (one["name"], one["version"]) == ("frail", 2)
        )
        assert second["state"] == "failed"
        assert "SIGSEGV" in second["reason"]
        assert set(pids(runtime)) == before
        assert runtime.detect(GREY, model="frail")["model"]["version"] == 1
    assert set(seen["frail"]) == {"good"}


def test_a_models_process_keeps_its_memory_to_itself_and_pays_first():
    """No core dump of either process; a model cannot take more memory than there is; when
    memory runs out all the same, the kernel ends a model and not the runtime."""
    with serving(yolov8()) as runtime:
        assert runtime.process is not None
        for pid in (runtime.process.pid, *pids(runtime)):
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            core = next(line for line in limits if line.startswith("Max core file size"))
            assert core.split()[4:6] == ["0", "0"], core
            # The kernel gives the files of a process that must not be dumped to root.
            if os.geteuid() != 0:
                assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
        for pid in pids(runtime):
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            data = next(line for line in limits if line.startswith("Max data size"))
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            assert int(data.split()[3]) < total, data
            assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        assert Path(f"/proc/{runtime.process.pid}/oom_score_adj").read_text() == (
            Path("/proc/self/oom_score_adj").read_text()
        )


def test_signals_to_the_whole_group_leave_the_models_to_the_runtime():
    """A terminal's Ctrl-C and a supervisor's SIGTERM reach every process; requests in flight
    are answered all the same, because only the runtime ends for them."""
    with serving(yolov8()) as runtime:
        before = pids(runtime)
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in before:
                os.kill(pid, number)
        assert len(runtime.detect(GREY)["detections"]) == 2
        assert pids(runtime) == before
