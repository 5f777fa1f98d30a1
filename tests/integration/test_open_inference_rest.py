"""The Open Inference Protocol by REST against a runtime: JSON and binary tensors, and lies."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.integration.runtime import Runtime, eventually, picture, slow, yolov8

INFER = "/v2/models/city/infer"
PICTURE = picture(128, 96)
BOXES = [[16, 16, 80, 80], [20, 4, 40, 44]]
SCORES = [np.float32(0.9), np.float32(0.6)]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("city", yolov8(best=0.9), yolov8(best=0.8))
    runtime.add("slow", slow(1500))
    runtime.add("broken", b"not a model")
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


def tensor(*pictures: bytes, **changes: Any) -> dict[str, Any]:
    """Return the input as JSON."""
    data = [base64.b64encode(one).decode() for one in pictures]
    made = {"name": "image", "datatype": "BYTES", "shape": [len(pictures)], "data": data}
    return {name: value for name, value in (made | changes).items() if value is not None}


def binary(*pictures: bytes, raw: bytes | None = None, **document: Any) -> tuple[bytes, dict]:
    """Return body and headers of a request whose input goes as binary data."""
    if raw is None:
        raw = b"".join(struct.pack("<I", len(one)) + one for one in pictures)
    one = tensor(*pictures, data=None, parameters={"binary_data_size": len(raw)})
    header = json.dumps({"inputs": [one], **document}).encode()
    return header + raw, {"inference-header-content-length": str(len(header))}


def arrays(answer: httpx.Response) -> dict[str, np.ndarray]:
    """Return the outputs of an answer, wherever each of them is in it."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    rest = answer.content[size:]
    found = {}
    for output in json.loads(answer.content[:size])["outputs"]:
        kind = {"FP32": "<f4", "INT32": "<i4"}[output["datatype"]]
        if "data" in output:
            flat = np.array(output["data"], kind)
        else:
            length = output["parameters"]["binary_data_size"]
            flat, rest = np.frombuffer(rest[:length], kind), rest[length:]
        found[output["name"]] = flat.reshape(output["shape"])
    assert not rest
    return found


def error(answer: httpx.Response, status: int) -> str:
    """Return the sentence of an error in the protocol's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    return document["error"]


def test_what_server_and_models_say_of_themselves(runtime: Runtime):
    """Metadata and health as the protocol has them, with and without a version."""
    get = runtime.client.get
    server = get("/v2").json()
    assert server["name"] == "polyolo"
    assert server["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert get(path).status_code == 200
    model = get("/v2/models/city").json()
    assert model == get("/v2/models/city/versions/2").json()
    assert (model["name"], model["versions"]) == ("city", ["1", "2"])
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {one["name"]: (one["datatype"], one["shape"]) for one in model["outputs"]} == {
        "num_dets": ("INT32", [-1, 1]),
        "det_boxes": ("FP32", [-1, -1, 4]),
        "det_scores": ("FP32", [-1, -1]),
        "det_classes": ("INT32", [-1, -1]),
    }
    assert get("/v2/models/city/ready").status_code == 200
    assert get("/v2/models/city/versions/2/ready").status_code == 200, "it loads on demand"
    eventually(lambda: "loading" not in error(get("/v2/models/broken/ready"), 503))


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize("model", ["nope", "city/versions/9", "city/versions/x", "nope/versions/1"])
def test_an_unknown_model_or_version_is_not_found(runtime: Runtime, model: str, path: str):
    """Whatever is asked of it."""
    target = f"/v2/models/{model}{path}"
    if path == "/infer":
        answer = runtime.client.post(target, json={"inputs": [tensor(PICTURE)]})
    else:
        answer = runtime.client.get(target)
    assert "there is no model" in error(answer, 404)


def test_paths_and_methods_that_are_not_there(runtime: Runtime):
    """Below /v2 an error always has the protocol's form."""
    error(runtime.client.get("/v2/models/city/config"), 404)
    error(runtime.client.get(INFER), 405)
    answer = runtime.client.get("/v3")
    assert answer.headers["content-type"] == "application/problem+json"


def test_pictures_in_json(runtime: Runtime):
    """Base64 in, numbers out; the id comes back; two pictures are metered as two."""
    answer = runtime.client.post(INFER, json={"id": "mine", "inputs": [tensor(PICTURE, PICTURE)]})
    document = answer.json()
    assert (document["model_name"], document["model_version"]) == ("city", "1")
    assert document["id"] == "mine"
    found = arrays(answer)
    assert found["num_dets"].tolist() == [[2], [2]]
    assert found["det_boxes"].tolist() == [BOXES, BOXES]
    assert found["det_scores"].tolist() == [SCORES, SCORES]
    assert found["det_classes"].tolist() == [[1, 2], [1, 2]]
    assert answer.headers["polyolo-model"] == "city:1"
    assert answer.headers["polyolo-images"] == "2"
    assert float(answer.headers["polyolo-engine-ms"]) > 0
    nested = tensor(PICTURE, shape=[1, 1])
    nested["data"] = [nested["data"]]
    nested["parameters"] = {"content_type": "base64"}
    again = runtime.client.post(INFER, json={"inputs": [nested]})
    assert arrays(again)["num_dets"].tolist() == [[2]]


def test_binary_both_ways_and_only_what_was_asked_for(runtime: Runtime):
    """Each output goes as its own parameter says, else as the request's, in the order asked."""
    body, headers = binary(
        PICTURE,
        parameters={"binary_data_output": True},
        outputs=[
            {"name": "det_scores"},
            {"name": "num_dets", "parameters": {"binary_data": False}},
            {"name": "det_boxes", "parameters": {"binary_data": True}},
        ],
    )
    answer = runtime.client.post("/v2/models/city/versions/2/infer", content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.content[:length])["outputs"]
    assert [one["name"] for one in outputs] == ["det_scores", "num_dets", "det_boxes"]
    assert ["data" in one for one in outputs] == [False, True, False]
    found = arrays(answer)
    assert found["det_scores"][0, 0] == np.float32(0.8), "version 2 has another best"
    assert found["det_boxes"].tolist() == [BOXES]


def test_the_picture_with_most_detections_sets_the_width(runtime: Runtime):
    """Fewer detections are padded with zeros; with none at all, M is 0."""
    flat = picture(16, 96)  # upright and narrow: boxes fall outside or become something else
    counts = {}
    for name, one in (("wide", PICTURE), ("narrow", flat)):
        counts[name] = len(runtime.detect(one, confidence="0.7")["detections"])
    both = {"parameters": {"confidence": 0.7}, "inputs": [tensor(PICTURE, flat)]}
    found = arrays(runtime.client.post(INFER, json=both))
    assert found["num_dets"].tolist() == [[counts["wide"]], [counts["narrow"]]]
    most = max(counts.values())
    assert found["det_boxes"].shape == (2, most, 4)
    for row, count in enumerate(counts.values()):
        assert not found["det_boxes"][row, count:].any()
        assert not found["det_scores"][row, count:].any()
    for as_binary in (True, False):
        none = {"confidence": 0.99, "binary_data_output": as_binary}
        answer = runtime.client.post(INFER, json={"parameters": none, "inputs": [tensor(PICTURE)]})
        found = arrays(answer)
        assert found["num_dets"].tolist() == [[0]]
        assert found["det_boxes"].shape == (1, 0, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"confidence": 0.7},
        {"confidence": "0.7", "iou": 1},
        {"classes": "dog"},
        {"classes": 2},
        {"max_detections": 1},
    ],
)
def test_parameters_mean_what_the_query_of_detect_means(runtime: Runtime, settings: dict):
    """As numbers or text, the same boxes."""
    wanted = runtime.detect(PICTURE, **settings)["detections"]
    answer = runtime.client.post(INFER, json={"parameters": settings, "inputs": [tensor(PICTURE)]})
    assert arrays(answer)["det_boxes"].tolist() == [[one["bbox"] for one in wanted]]


@pytest.mark.parametrize(
    "settings",
    [{"confidence": 1.5}, {"iou": "x"}, {"max_detections": 0}, {"classes": "cow"}, {"conf": 0.5}],
)
def test_a_wrong_parameter_gets_the_sentence_of_detect(runtime: Runtime, settings: dict):
    """Out of range, no number, no such class, a typo: 422."""
    body = {"parameters": settings, "inputs": [tensor(PICTURE)]}
    said = error(runtime.client.post(INFER, json=body), 422)
    wanted = runtime.client.post("/v1/detect", content=PICTURE, params=settings).json()
    if "conf" not in settings:  # the query has one parameter more, model
        assert said == wanted["detail"]
    assert wanted["status"] == 422


BAD = {
    "no JSON": (b"{", 400, "not what belongs here"),
    "another document": (b'{"inputs": 7}', 400, "inputs"),
    "no input": ({"inputs": []}, 400, "one input, image"),
    "another input": ({"inputs": [tensor(PICTURE, name="images")]}, 400, "images"),
    "two inputs": ({"inputs": [tensor(PICTURE), tensor(PICTURE)]}, 400, "one input"),
    "another datatype": ({"inputs": [tensor(PICTURE, datatype="UINT8")]}, 400, "BYTES"),
    "no shape": ({"inputs": [tensor(PICTURE, shape=[])]}, 400, "shape"),
    "an image's shape": ({"inputs": [tensor(PICTURE, shape=[1, 3, 64, 64])]}, 400, "shape"),
    "a negative shape": ({"inputs": [tensor(PICTURE, shape=[-1])]}, 400, "shape"),
    "more shape than data": ({"inputs": [tensor(PICTURE, shape=[2])]}, 400, "shape says 2"),
    "more data than shape": ({"inputs": [tensor(PICTURE, PICTURE, shape=[1])]}, 400, "says 1"),
    "no data": ({"inputs": [tensor(PICTURE, data=None)]}, 400, "data"),
    "no base64": ({"inputs": [tensor(PICTURE, data=["ÿØÿà"])]}, 400, "base64"),
    "another encoding": (
        {"inputs": [tensor(PICTURE, parameters={"content_type": "str"})]}, 422, "base64"),
    "65 pictures": ({"inputs": [tensor(*[b"x"] * 65)]}, 422, "at most 64"),
    "an unknown output": (
        {"inputs": [tensor(PICTURE)], "outputs": [{"name": "output0"}]}, 400, "output0"),
    "an output twice": (
        {"inputs": [tensor(PICTURE)], "outputs": [{"name": "num_dets"}] * 2}, 400, "twice"),
    "classification": (
        {"inputs": [tensor(PICTURE)],
         "outputs": [{"name": "num_dets", "parameters": {"classification": 3}}]}, 422, "classific"),
    "binary that is no flag": (
        {"inputs": [tensor(PICTURE)], "parameters": {"binary_data_output": "yes"}}, 422, "true"),
    "shared memory": (
        {"inputs": [tensor(PICTURE, parameters={"shared_memory_region": "x"})]}, 422, "shared"),
    "data and a binary size": (
        {"inputs": [tensor(PICTURE, parameters={"binary_data_size": 4})]}, 400, "either"),
    "deep nesting": (b'{"x":' + b"[" * 100_000, 400, "deep"),
    "a flood of values": (b'{"inputs": [' + b"1," * 100_000, 400, "far more values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_what_is_wrong(runtime: Runtime, name: str):
    """Each in a sentence that names it, and the next request is answered."""
    body, status, sentence = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert sentence in error(runtime.client.post(INFER, content=content), status)


def lying(length: object, **document: Any) -> tuple[bytes, dict]:
    body, _ = binary(PICTURE, **document)
    return body, {"inference-header-content-length": str(length)}


LIES = {
    "no length": (lying("x"), "Inference-Header-Content-Length"),
    "a negative length": (lying(-1), "Inference-Header-Content-Length"),
    "a length beyond the body": (lying(10**8), "Inference-Header-Content-Length"),
    "a length within the JSON": (lying(7), "not what belongs here"),
    "a length of nothing": (lying(0), "not what belongs here"),
    "a cut off prefix": (binary(PICTURE, raw=b"\1\0"), "within an element"),
    "a prefix beyond the data": (binary(PICTURE, raw=b"\xff\xff\xff\xffxx"), "within an element"),
    "an element too few": (binary(PICTURE, raw=b""), "0 elements"),
    "an element too many": (binary(PICTURE, raw=bytes(8)), "2 elements"),
    "a flood of elements": (binary(PICTURE, raw=bytes(4_000_000)), "2 elements"),
    "another size": ((binary(PICTURE)[0] + b"x", binary(PICTURE)[1]), "follow the JSON header"),
}


@pytest.mark.parametrize("name", LIES)
def test_binary_data_that_does_not_add_up(runtime: Runtime, name: str):
    """Lengths are believed only as far as the bytes go."""
    (body, headers), sentence = LIES[name]
    answer = runtime.client.post(INFER, content=body, headers=headers)
    assert sentence in error(answer, 400)


@pytest.mark.parametrize(
    ("bad", "status"),
    [(b"text", 415), (b"", 400), (PICTURE[:200], 422), (b"\x89PNG\r\n\x1a\n", 422)],
)
def test_one_bad_picture_fails_the_request_and_is_named(runtime: Runtime, bad: bytes, status: int):
    """By its index; another request at the same time gets its answer."""
    body, headers = binary(PICTURE, PICTURE, bad)
    answer = runtime.client.post(INFER, content=body, headers=headers)
    assert error(answer, status).startswith("image[2]: ")
    assert len(runtime.detect(PICTURE)["detections"]) == 2


def test_too_many_bytes_are_refused(runtime: Runtime):
    """Declared or not, a body ends at 21 MiB; a compressed one is not read at all."""
    big = bytes(22 * 1024 * 1024)
    assert "bytes" in error(runtime.client.post(INFER, content=big), 413)
    headers = {"content-encoding": "gzip"}
    assert "compressed" in error(runtime.client.post(INFER, content=b"x", headers=headers), 415)


def test_pictures_of_one_request_are_queued_at_once(runtime: Runtime):
    """Six pictures wait together, not one after the other; hanging up withdraws them."""
    line = 'polyolo_requests_in_flight{model="slow",tenant="t_test"}'
    transport = httpx.HTTPTransport(uds=str(runtime.socket))
    with httpx.Client(transport=transport, base_url="http://runtime", timeout=0.5) as impatient:

        def ask() -> None:
            body = {"inputs": [tensor(*[PICTURE] * 6)]}
            with pytest.raises(httpx.ReadTimeout):
                impatient.post("/v2/models/slow/infer", json=body)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: runtime.metric(line) == 6)
        asking.join()
    eventually(lambda: runtime.metric(line) == 0, within=1.5, what="withdrawn, not worked off")


def test_a_deadline_is_kept(runtime: Runtime):
    """Polyolo-Timeout-Ms holds here too."""
    headers = {"polyolo-timeout-ms": "100"}
    body = {"inputs": [tensor(*[PICTURE] * 4)]}
    assert "0.1 s" in error(
        runtime.client.post("/v2/models/slow/infer", json=body, headers=headers), 504
    )
