"""A model's life through the whole platform: pushed, compared, swapped, tried, rolled back."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from polyolo.client import Client
from polyolo.comparejob import ExpectedBox
from polyolo.errors import BelowToleranceError, NotFoundError, PolyoloError
from polyolo.models import bundled, sample_boards
from polyolo.serving.rollouts import chosen
from tests.e2e.platform import eventually
from tests.unit import graphs

NAMES = ("cat", "dog", "traffic light")
GREY = cv2.imencode(".png", np.full((64, 64, 3), 127, np.uint8))[1].tobytes()


def light(best: float) -> bytes:
    """Return a YOLOv8 that sees the same everywhere, in no time; best: confidence of the dog."""
    out = graphs.yolov8()
    out[0, 5, graphs.AT[0]] = best
    return graphs.graph({"output0": out}, metadata={"names": str(list(NAMES))})


@contextmanager
def load(client: Client, picture: bytes, **asked: Any) -> Iterator[list[Any]]:
    """Keep three connections busy; collect every answer, or the error in its place."""
    seen: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(client.url, client.api_key, retries=0) as mine:
            while not stop.is_set():
                try:
                    seen.append(mine.detect(picture, **asked))
                except PolyoloError as error:
                    seen.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def failures(seen: list[Any]) -> list[Any]:
    return [one for one in seen if isinstance(one, Exception)]


def put_golden(client: Client, name: str) -> None:
    """Put the sample boards beside a model, with the boxes that are known to be there."""
    folder = sample_boards()[0].parent
    for number, board in enumerate(json.loads((folder / "truth.json").read_text()), start=1):
        client.put_golden(
            name,
            number,
            (folder / board["file"]).read_bytes(),
            expected=[
                ExpectedBox(class_name=one["class"], bbox=tuple(one["xyxy"]))
                for one in board["defects"]
            ],
        )


def test_from_push_to_canary_and_back(platform, board, tmp_path):
    """pcb:1, then pcb:2 through the gate and under load, back, a canary, a shadow: 0 failures."""
    _, client = platform.tenant("life")
    picture = board.read_bytes()
    with client:
        client.push_model("pcb", bundled("pcb", 1))
        assert str(client.detect(picture).model) == "pcb:1"
        put_golden(client, "pcb")
        client.push_model("pcb", bundled("pcb", 2))
        assert str(client.detect(picture).model) == "pcb:1"
        report = client.compare_version("pcb", 2)
        assert report.passed, report
        assert report.comparison.agreement > 0.95
        assert report.reference_comparison is not None
        assert report.reference_comparison.agreement < 0.7

        with load(client, picture) as seen:
            eventually(lambda: len(seen) > 5, within=20, what="load")
            assert client.use_model("pcb", 2).current == 2
            mark = len(seen)
            eventually(lambda: len(seen) > mark + 8, within=20, what="answers by pcb:2")
            after = [str(one.model) for one in seen[mark + 6 :]]
            back = client.rollback_model("pcb")
            assert (back.current, back.rolled_back_from) == (1, 2)
            mark = len(seen)
            eventually(lambda: len(seen) > mark + 8, within=20, what="answers by pcb:1")
        assert failures(seen) == []
        assert set(after) == {"pcb:2"}
        assert str(client.detect(picture).model) == "pcb:1"

        client.use_model("pcb", 2)
        with pytest.raises(BelowToleranceError) as refused:  # worse than what is in use
            client.use_model("pcb", 1)
        table = refused.value.extensions["comparison"]["comparison"]["classes"]
        assert {one["name"]: one["missing"] for one in table}["mouse_bite"] > 0

        audited = {one.action for one in client.list_audit(limit=1000)}
        assert {"model.golden", "model.use", "model.rollback"} <= audited
        _canary(client, tmp_path)
        _shadow(client)


def _canary(client: Client, tmp_path: Any) -> None:
    for best in (0.9, 0.8):
        file = tmp_path / f"{best}.onnx"
        file.write_bytes(light(best))
        client.push_model("light", file)
    client.begin_rollout("light", 2, share=0.2)
    ids = [f"life-{number}" for number in range(2000)]
    headers = {"x-api-key": client.api_key or ""}

    def ask(some: list[str]) -> list[tuple[str, int, int]]:
        found = []
        with closing(HTTPConnection(urlsplit(client.url).netloc, timeout=30)) as mine:  # is cheap
            for one in some:
                mine.request(
                    "POST", "/v1/detect?model=light", GREY, headers | {"x-request-id": one}
                )
                answer = mine.getresponse()
                document = json.loads(answer.read())
                found.append((one, answer.status, document.get("model", {}).get("version", 0)))
        return found

    with ThreadPoolExecutor(4) as pool:
        seen = [one for part in pool.map(ask, [ids[n::4] for n in range(4)]) for one in part]
    assert Counter(status for _, status, _ in seen) == {200: 2000}
    share = sum(version == 2 for _, _, version in seen) / len(seen)
    assert abs(share - 0.2) < 0.03, share
    assert all(version == (2 if chosen(one, 0.2) else 1) for one, _, version in seen)
    assert client.promote_rollout("light").current == 2


def _shadow(client: Client) -> None:
    client.begin_rollout("light", 1, share=1.0, shadow=True)
    seen = [client.detect(GREY, model="light") for _ in range(50)]
    assert {(one.model.version, one.detections[0].confidence) for one in seen} == {(2, 0.8)}

    def compared() -> Any:
        rollout = client.get_model("light").rollout
        assert rollout is not None
        comparison = rollout.status.comparison
        return comparison if comparison and comparison.pictures > 0 else None

    assert eventually(compared, within=10, what="the shadow's boxes are told").agreement == 1.0
    aborted = client.abort_rollout("light").rollout
    assert aborted is not None
    assert aborted.state == "aborted"


def test_two_tenants_with_the_same_name_and_file_are_apart(platform, board):
    """Deleting one's model, or all of one's, leaves the other's as it was."""
    _, client_a = platform.tenant("twin-a")
    b, client_b = platform.tenant("twin-b")
    with client_a, client_b:
        for client in (client_a, client_b):
            client.push_model("boards", bundled("pcb", 2))
        wanted = client_b.detect(board).detections
        assert client_a.detect(board).detections == wanted
        client_a.delete_model("boards")
        with pytest.raises(NotFoundError):
            client_a.detect(board, model="boards")
        assert client_b.detect(board, model="boards:1").detections == wanted
        client_a.push_model("boards", bundled("pcb", 2))
        with platform.operator() as operator:
            operator.delete_tenant(b.id)
        answer = client_a.detect(board, model="boards:1")
        assert answer.detections == wanted
