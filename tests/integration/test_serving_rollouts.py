"""Versions on trial and versions that crash, in a real runtime: who answers, and what is told."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from polyolo.serving.rollouts import chosen
from tests.integration import troubled
from tests.integration.runtime import NAMES, Runtime, eventually, slow, yolov8
from tests.integration.test_serving_crash import client, kind
from tests.integration.test_serving_swap import Connection
from tests.unit import graphs

GREY = troubled.picture(white=False)
WHITE = troubled.picture(white=True)


def without_light() -> bytes:
    """Return a YOLOv8 that sees the dog where the others do, no traffic light, and a cat."""
    out = graphs.yolov8()
    out[0, 4:, 70] = 0.01
    out[0, 4, 70] = 0.8
    return graphs.graph({"output0": out}, metadata=NAMES)


@contextmanager
def serving(first: bytes, second: bytes, *, current: int = 1, **model: Any) -> Iterator[Runtime]:
    """Run a runtime with two versions of a model, and what its spec says more of it."""
    runtime = Runtime()
    runtime.add("city", first, second, current=current)
    runtime.models[0] |= model
    try:
        runtime.start()
        eventually(lambda: runtime.status()["observed_generation"] == 1)
        yield runtime
        assert "Traceback" not in runtime.log()
    finally:
        runtime.close()


def rollout(share: float, *, shadow: bool = False) -> dict[str, Any]:
    return {"version": 2, "share": share, "shadow": shadow}


def second(runtime: Runtime) -> dict[str, Any]:
    return next(one for one in runtime.status()["models"] if one["version"] == 2)


def ask(runtime: Runtime, ids: list[str], body: bytes = GREY) -> list[tuple[int, float]]:
    """Return (version, confidence of the dog) of the answer to each request, over 4 connections."""
    seen: dict[str, tuple[int, float]] = {}

    def some(mine: list[str]) -> None:
        with closing(Connection(runtime.socket)) as connection:
            for request_id in mine:
                one = connection.ask(body, {"X-Request-Id": request_id})
                seen[request_id] = one.version, one.best

    threads = [threading.Thread(target=some, args=(ids[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seen[one] for one in ids]


def test_a_canary_answers_its_share_and_is_sticky_by_request_id():
    """20 % within 3 points of 2,000; the answer names who gave it, the same for the same id."""
    ids = [f"request-{number}" for number in range(2000)]
    with serving(yolov8(), yolov8(best=0.8), rollout=rollout(0.2)) as runtime:
        seen = ask(runtime, ids)
        assert set(seen) == {(1, 0.9), (2, 0.8)}
        share = sum(version == 2 for version, _ in seen) / len(seen)
        assert abs(share - 0.2) < 0.03, share
        assert ask(runtime, ids[:100]) == seen[:100]
        assert [version for version, _ in seen] == [2 if chosen(one, 0.2) else 1 for one in ids]
        told = second(runtime)["rollout"]
        assert (told["seen"], told["failed"]) == (2100, 0)
        assert told["requests"] == sum(chosen(one, 0.2) for one in [*ids, *ids[:100]])
        assert told["milliseconds"] > 0
        assert told["current_milliseconds"] > 0
        named = runtime.client.post("/v1/detect?model=city:1", content=GREY)
        assert named.json()["model"]["version"] == 1
        line = 'polyolo_rollout_requests_total{model="city",outcome="answered",tenant="t_test"}'
        assert runtime.metric(line) == told["requests"]


def test_a_canary_is_chosen_in_the_tensor_protocol_too():
    """One request, one version, however many pictures."""
    with serving(yolov8(), yolov8(best=0.8), rollout=rollout(0.5)) as runtime:
        picture = base64.b64encode(GREY).decode()
        inputs = [{"name": "image", "shape": [3], "datatype": "BYTES", "data": [picture] * 3}]
        for number in range(10):
            answer = runtime.client.post(
                "/v2/models/city/infer",
                json={"inputs": inputs},
                headers={"x-request-id": f"r{number}"},
            ).json()
            version, best = (2, 0.8) if chosen(f"r{number}", 0.5) else (1, 0.9)
            scores = next(one for one in answer["outputs"] if one["name"] == "det_scores")
            assert answer["model_version"] == str(version)
            assert [round(one, 2) for one in scores["data"][::2]] == [best] * 3


def test_a_shadow_changes_no_answer_and_is_compared_by_class():
    """Every answer is the current version's; what it would have missed and added is told."""
    with serving(yolov8(), without_light(), rollout=rollout(1.0, shadow=True)) as runtime:
        seen = ask(runtime, [f"r{number}" for number in range(40)])
        assert set(seen) == {(1, 0.9)}
        told = eventually(
            lambda: (
                (found := second(runtime)["rollout"])["comparison"]["pictures"] + found["skipped"]
                == 40
                and found
            )
        )
        comparison = told["comparison"]
        assert comparison["pictures"] > 0
        counts = {
            one["name"]: (one["both"], one["missing"], one["extra"])
            for one in comparison["classes"]
        }
        n = comparison["pictures"]
        assert counts == {"dog": (n, 0, 0), "traffic light": (0, n, 0), "cat": (0, 0, n)}
        assert comparison["agreement"] == pytest.approx(1 / 3, abs=1e-3)
        line = 'polyolo_rollout_boxes_total{found="missing",model="city",tenant="t_test"}'
        assert runtime.metric(line) == n
        arrays = base64.b64encode(GREY).decode()
        inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [arrays]}]
        runtime.client.post("/v2/models/city/infer", json={"inputs": inputs})
        eventually(
            lambda: second(runtime)["rollout"]["comparison"]["pictures"] == n + 1
        )  # arrays are compared as JSON is
        assert second(runtime)["rollout"]["comparison"]["classes"][1]["both"] == n + 1
        jpeg = runtime.client.post("/v1/detect", content=GREY, headers={"accept": "image/jpeg"})
        assert jpeg.status_code == 200


def test_a_shadow_runs_when_nobody_else_wants_to():
    """Its process has the scheduler's idle class; copies that it cannot take are skipped."""
    with serving(yolov8(), slow(100), rollout=rollout(1.0, shadow=True)) as runtime:
        pids = runtime.workers()
        policies = [policy(pid) for pid in pids]
        assert policies == [0, 5], "SCHED_OTHER and SCHED_IDLE"
        seen = ask(runtime, [f"r{number}" for number in range(100)])
        assert set(seen) == {(1, 0.9)}
        told = second(runtime)["rollout"]
        assert told["skipped"] > 80
        assert told["failed"] == 0


def policy(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[38])


@pytest.mark.parametrize("shadow", [False, True])
def test_a_version_on_trial_that_crashes_costs_no_request(shadow: bool):
    """White pictures end its process; the current version answers them, and from then on all."""
    trial = rollout(1.0, shadow=shadow)
    with serving(yolov8(), troubled.dies(best=0.8), rollout=trial) as runtime:
        before = set(ask(runtime, [f"g{number}" for number in range(20)]))
        assert before == ({(1, 0.9)} if shadow else {(2, 0.8)})
        assert ask(runtime, ["white"], WHITE) == [(1, 0.9)]
        eventually(lambda: ask(runtime, ["white"], WHITE) and second(runtime)["state"] == "failed")
        assert "SIGFPE" in second(runtime)["reason"]
        assert set(ask(runtime, [f"h{number}" for number in range(20)])) == {(1, 0.9)}
        told = second(runtime)["rollout"]
        assert (told["failed"], second(runtime)["crashes"]) == (1, 1)


def test_a_version_that_keeps_crashing_is_taken_out_for_the_one_before():
    """After at most 5 crashes; only what ended it failed; a model beside it notices nothing."""
    runtime = Runtime()
    runtime.add("city", yolov8(), troubled.dies(best=0.8), current=2)
    runtime.models[0]["fallback"] = 1
    runtime.add("steady", yolov8())
    stop = threading.Event()
    seen: dict[str, Counter] = {"city": Counter(), "steady": Counter()}

    def keep_asking(name: str) -> None:
        with client(runtime) as mine:
            while not stop.is_set():
                answer = mine.post(f"/v1/detect?model={name}", content=GREY)
                seen[name][outcome(answer)] += 1

    def outcome(answer: httpx.Response) -> Any:
        if answer.status_code == 200:
            return answer.json()["model"]["version"]
        return answer.status_code, kind(answer)

    try:
        runtime.start()
        eventually(lambda: runtime.status()["observed_generation"] == 1)
        threads = [threading.Thread(target=keep_asking, args=(name,)) for name in seen]
        for thread in threads:
            thread.start()
        failed = 0
        with client(runtime) as mine:
            while (answer := mine.post("/v1/detect?model=city", content=WHITE)).status_code == 500:
                failed += 1
                assert failed <= 5
            taken = time.monotonic()
        assert outcome(answer) == 1, "white pictures are answered by the version before"
        eventually(lambda: seen["city"][1] > 20)
        stop.set()
        for thread in threads:
            thread.join()
        assert 4 <= failed <= 5  # the last one may be answered by the version before already
        assert time.monotonic() - taken < 5
        assert set(seen["steady"]) == {1}
        beside = {one: count for one, count in seen["city"].items() if one not in (1, 2)}
        assert set(beside) <= {(500, "model-failed")}, seen  # was under way in the same process
        assert sum(beside.values()) <= 5
        out = second(runtime)
        assert (out["state"], out["crashes"]) == ("failed", 5)
        assert "ended 5 times within 600 s: it was ended by signal SIGFPE" in out["reason"]
        assert runtime.answers("/readyz")
    finally:
        stop.set()
        runtime.close()
