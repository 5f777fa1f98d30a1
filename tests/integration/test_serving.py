"""The runtime over HTTP: a picture in, its boxes out, in every form that the contract gives."""

from __future__ import annotations

import json
from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest

from tests.integration.runtime import SHARED, Runtime, picture, yolov8, yolox


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("city", yolov8(best=0.9), yolov8(best=0.8))
    runtime.add("other", yolox(), classes=("a", "b", "c"), confidence=0.65)
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


def test_the_answer_is_what_the_contract_shows(runtime: Runtime):
    """Model, picture, boxes with the best first, timings, request id; metering in headers."""
    answer = runtime.client.post(
        "/v1/detect", content=picture(128, 96), headers={"x-request-id": "mine-1"}
    )
    assert answer.status_code == 200
    document = answer.json()
    assert document["request_id"] == answer.headers["x-request-id"] == "mine-1"
    assert document["model"] == {"name": "city", "version": 1}
    assert document["image"] == {"width": 128, "height": 96}
    assert document["cold_start"] is False
    # 128 x 96 in 64 x 64: half the size, 8 pixels of border above.
    assert document["detections"] == [
        {"class_id": 1, "class_name": "dog", "confidence": 0.9, "bbox": [16, 16, 80, 80]},
        {"class_id": 2, "class_name": "traffic light", "confidence": 0.6, "bbox": [20, 4, 40, 44]},
    ]
    timing = document["timing_ms"]
    assert list(timing) == ["queue", "decode", "inference", "postprocess", "total"]
    assert timing["total"] >= timing["decode"] + timing["inference"] + timing["postprocess"]
    assert answer.headers["polyolo-model"] == "city:1"
    assert answer.headers["polyolo-images"] == "1"
    assert float(answer.headers["polyolo-engine-ms"]) == timing["inference"]


def test_models_of_two_families_answer_side_by_side(runtime: Runtime):
    """A model is called by name, a version that is not current by number."""
    other = runtime.detect(picture(), model="other")
    assert other["model"] == {"name": "other", "version": 1}
    assert [one["class_name"] for one in other["detections"]] == ["b"], "its own confidence: 0.65"
    second = runtime.detect(picture(), model="city:2")
    assert second["model"] == {"name": "city", "version": 2}
    assert second["detections"][0]["confidence"] == 0.8


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"confidence": "0.7"}, ["dog"]),
        ({"confidence": "0.95"}, []),
        ({"classes": "traffic light"}, ["traffic light"]),
        ({"classes": "2,dog"}, ["dog", "traffic light"]),
        ({"max_detections": "1"}, ["dog"]),
        ({"iou": "1"}, ["dog", "dog", "traffic light"]),
        ({"confidence": "0.65", "model": "city:1", "iou": "1"}, ["dog", "dog"]),
    ],
)
def test_a_request_sets_what_counts_as_a_detection(runtime: Runtime, query, names):
    """Confidence, overlap, classes by id and name, and the maximum hold for this request only."""
    found = runtime.detect(picture(), **query)["detections"]
    assert [one["class_name"] for one in found] == names
    assert len(runtime.detect(picture())["detections"]) == 2


@pytest.mark.parametrize("kind", [None, "image/jpeg", "application/octet-stream", "text/plain"])
def test_a_raw_body_is_the_picture_whatever_it_is_called(runtime: Runtime, kind):
    """What a picture is shows in its bytes, not in the Content-Type."""
    headers = {} if kind is None else {"content-type": kind}
    answer = runtime.client.post("/v1/detect", content=picture(), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("field", ["image", "file"])
def test_a_form_gives_the_same_boxes(runtime: Runtime, field):
    """The picture may come in a form, large enough to arrive in many pieces, among other fields."""
    large = picture(1600, 1200)
    assert len(large) > 1_000_000
    answer = runtime.client.post(
        "/v1/detect", files={field: ("a.jpg", large, "image/jpeg")}, data={"comment": "x" * 2000}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["detections"] == runtime.detect(large)["detections"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/jpeg", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
        ("*/*", "application/json"),
        ("text/html,image/avif,image/webp,*/*;q=0.8", "application/json"),
        ("application/json, image/jpeg", "application/json"),
        ("text/csv", "application/json"),
        ("image/jpeg;q=nonsense", "application/json"),
    ],
)
def test_accept_chooses_between_boxes_and_the_annotated_picture(runtime: Runtime, accept, kind):
    """The picture comes back in its size with something drawn on it, and is metered too."""
    sent = picture()
    answer = runtime.client.post("/v1/detect", content=sent, headers={"accept": accept})
    assert answer.headers["content-type"] == kind
    assert answer.headers["polyolo-model"] == "city:1"
    if kind.startswith("image/"):
        drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        plain = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR)
        assert drawn.shape == plain.shape
        assert not np.array_equal(drawn, plain)


def test_a_cold_start_is_echoed(runtime: Runtime):
    """The gateway says that a request waited for the runtime; the answer repeats it."""
    answer = runtime.client.post(
        "/v1/detect", content=picture(), headers={"polyolo-cold-start": "1"}
    )
    assert answer.json()["cold_start"] is True


def test_probes_and_metrics_tell_of_the_work(runtime: Runtime):
    """Live and ready; requests are counted by model and status, inference is timed."""
    counted = 'polyolo_requests_total{code="200",model="city",tenant="t_test"}'
    timed = 'polyolo_inference_duration_seconds_count{model="city",tenant="t_test"}'
    before = runtime.metric(counted), runtime.metric(timed)
    runtime.detect(picture())
    assert (runtime.metric(counted), runtime.metric(timed)) == (before[0] + 1, before[1] + 1)
    assert runtime.metric('polyolo_queue_depth{model="city",tenant="t_test"}') == 0
    assert runtime.metric('polyolo_requests_in_flight{model="city",tenant="t_test"}') == 0
    assert runtime.client.get("/livez").json() == {"status": "ok"}
    assert runtime.client.get("/readyz").json() == {"status": "ok"}


def test_the_status_names_each_version(runtime: Runtime):
    """What is loaded says its family, input and engine."""
    status = runtime.status()
    assert (status["tenant"], status["phase"], status["observed_generation"]) == (
        "t_test",
        "ready",
        1,
    )
    first = status["models"][0]
    assert 10_000_000 < first.pop("memory_bytes") < 200_000_000
    assert first == {
        "name": "city",
        "version": 1,
        "state": "ready",
        "reason": "",
        "family": "yolov8",
        "input": [1, 3, 64, 64],
        "engine": "onnxruntime",
        "device": "cpu",
        "precision": "float32",
        "speed": "",
        "quality": "",
        "crashes": 0,
        "rollout": None,
    }


def overlap(one: list[float], other: list[float]) -> float:
    """Return the intersection over the union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common)


def test_forty_photos_give_the_expected_boxes():
    """YOLOX-Nano: the same set, the same classes, IoU at least 0.98, confidence within 0.01."""
    if not (SHARED / "models/yolox_nano.onnx").exists():
        pytest.skip("needs ../shared with YOLOX-Nano and photos, not part of the project")
    expected = json.loads((SHARED / "expected/yolox_nano.json").read_text())
    runtime = Runtime()
    runtime.add(
        "coco",
        (SHARED / "models/yolox_nano.onnx").read_bytes(),
        classes=expected["class_names"],
        confidence=expected["confidence"],
        iou=expected["iou"],
    )
    try:
        runtime.start()
        for name, image in expected["images"].items():
            wanted = list(image["detections"] if isinstance(image, dict) else image)
            found = runtime.detect((SHARED / "photos" / name).read_bytes())["detections"]
            assert len(found) == len(wanted), name
            for one in found:
                best = max(
                    (other for other in wanted if other["class_id"] == one["class_id"]),
                    key=lambda other: overlap(other["bbox"], one["bbox"]),
                )
                wanted.remove(best)
                assert overlap(best["bbox"], one["bbox"]) >= 0.98, name
                assert abs(best["confidence"] - one["confidence"]) <= 0.01, name
    finally:
        runtime.close()


def test_a_path_that_is_not_there_and_a_method_that_does_not_fit(runtime: Runtime):
    """Both are problem documents too."""
    missing = runtime.client.get("/v1/nothing")
    wrong = runtime.client.get("/v1/detect")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    kinds = {httpx.Response.json(one)["title"] for one in (missing, wrong)}
    assert kinds == {"Not found", "Method not allowed"}
