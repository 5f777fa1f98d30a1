"""An unmodified tritonclient, by HTTP and by gRPC, through the gateway of a real `polyolo up`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from polyolo import models
from tests.e2e.platform import SHARED, Platform, eventually

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")


@dataclass
class Ways:
    """One tenant, as tritonclient sees it over one transport."""

    module: Any
    client: Any
    headers: dict[str, str]
    """Handed out as copies: tritonclient.http writes its own into them."""

    def infer(self, model: str, pictures: Sequence[bytes], **options: Any) -> Any:
        """Infer as tritonclient does by default: an array of objects, as binary data."""
        made = self.module.InferInput("image", [len(pictures)], "BYTES")
        made.set_data_from_numpy(np.array(pictures, dtype=np.object_))
        return self.client.infer(model, [made], headers=dict(self.headers), **options)

    def outputs(self, **binary: bool) -> list[Any]:
        return [self.module.InferRequestedOutput(name, **binary) for name in OUTPUTS]


@pytest.fixture(params=["http", "grpc"])
def transport(request) -> str:
    return request.param


@pytest.fixture
def connect(transport: str, platform: Platform) -> Iterator[Callable[[str], Ways]]:
    """Give a function that connects with a key, over each transport."""
    opened = []

    def connect(key: str) -> Ways:
        if transport == "http":
            module = tritonclient.http
            client = module.InferenceServerClient(f"127.0.0.1:{platform.port}")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
        else:
            module = tritonclient.grpc
            client = module.InferenceServerClient(f"127.0.0.1:{platform.port + 1}")
            headers = {"authorization": f"Bearer {key}"} if key else {}
        opened.append(client)
        return Ways(module, client, headers)

    yield connect
    for client in opened:
        client.close()


def found(result: Any, row: int = 0) -> list[tuple]:
    """Return one picture's detections: class id, confidence, box."""
    number, boxes, scores, classes = (result.as_numpy(name) for name in OUTPUTS)
    count = int(number[row, 0])
    assert not boxes[row, count:].any(), "padded with zeros"
    return [
        (int(classes[row, at]), float(scores[row, at]), boxes[row, at].tolist())
        for at in range(count)
    ]


def assert_same(got: list[tuple], wanted: Sequence[Any]) -> None:
    """Assert the boxes of `/v1/detect`, which rounds to 2 and 4 digits."""
    assert len(got) == len(wanted)
    for (class_id, confidence, box), want in zip(got, wanted, strict=True):
        assert class_id == want.class_id
        assert confidence == pytest.approx(want.confidence, abs=1e-4)
        assert box == pytest.approx(list(want.bbox), abs=0.011)


def test_the_boxes_of_detect_on_a_sample_board(platform, connect, transport, board):
    """The standard model: the same boxes as by /v1/detect, picture by picture, and metered."""
    _, client = platform.tenant(f"triton-board-{transport}")
    data = Path(board).read_bytes()
    with client:
        ways = connect(client.api_key)
        wanted = client.detect(data).detections
        few = client.detect(data, confidence=0.9).detections
        assert len(wanted) > 1
        result = ways.infer("standard", [data, data, data], request_id="mine")
        for row in range(3):
            assert_same(found(result, row), wanted)
        response = result.get_response()
        if isinstance(response, dict):
            assert (response["id"], response["model_name"]) == ("mine", "standard")
        else:
            assert (response.id, response.model_name) == ("mine", "standard")
        strict = ways.infer("standard", [data], parameters={"confidence": "0.9"})
        assert_same(found(strict), few)
        none = ways.infer("standard", [data], parameters={"classes": "0", "confidence": "1"})
        assert none.as_numpy("num_dets").tolist() == [[0]]
        assert none.as_numpy("det_boxes").shape == (1, 0, 4)
        only = ways.infer("standard", [data], outputs=ways.outputs()[:1])
        assert only.as_numpy("num_dets").tolist() == [[len(wanted)]]
        assert only.as_numpy("det_boxes") is None
        asked = 1 + 1 + 3 + 1 + 1 + 1
        eventually(
            lambda: client.usage().images == asked, within=10, what="every picture is counted"
        )


def test_json_both_ways_and_mixed_modes(platform, connect, transport, board):
    """HTTP without binary data: base64 in, numbers out; then each way of the one with the other."""
    if transport == "grpc":
        pytest.skip("gRPC has no JSON")
    _, client = platform.tenant("triton-json")
    data = Path(board).read_bytes()
    with client:
        ways = connect(client.api_key)
        wanted = client.detect(data).detections
        text = base64.b64encode(data)
        for binary_in in (True, False):
            for binary_out in (True, False):
                made = ways.module.InferInput("image", [1, 1], "BYTES")
                element = data if binary_in else text
                made.set_data_from_numpy(
                    np.array([[element]], dtype=np.object_), binary_data=binary_in
                )
                result = ways.client.infer(
                    "standard", [made], headers=dict(ways.headers),
                    outputs=ways.outputs(binary_data=binary_out),
                )  # fmt: skip
                assert_same(found(result), wanted)


def test_health_and_metadata(platform, connect, transport):
    """All that tritonclient asks of a server by the protocol."""
    _, client = platform.tenant(f"triton-health-{transport}")
    with client:
        ways = connect(client.api_key)
        ask, headers = ways.client, {"headers": ways.headers}
        assert ask.is_server_live(**headers)
        assert ask.is_server_ready(**headers)
        assert ask.is_model_ready("standard", **headers)
        assert ask.is_model_ready("standard", "1", **headers)
        server = ask.get_server_metadata(**headers)
        model = ask.get_model_metadata("standard", **headers)
        if ways.module is tritonclient.grpc:
            assert server.name == "polyolo"
            assert [one.name for one in model.inputs] == ["image"]
            assert [one.name for one in model.outputs] == list(OUTPUTS)
        else:
            assert server["name"] == "polyolo"
            assert [one["name"] for one in model["inputs"]] == ["image"]
            assert [one["name"] for one in model["outputs"]] == list(OUTPUTS)


def test_who_may_not(platform, connect, transport, board):
    """No credential, a wrong one, and another tenant's model, which is as if it were not there."""
    _, owner = platform.tenant(f"triton-owner-{transport}")
    _, other = platform.tenant(f"triton-other-{transport}")
    data = Path(board).read_bytes()
    with owner, other:
        owner.push_model("mine", models.bundled(*models.STANDARD))
        connect(owner.api_key).infer("mine", [data])
        for key, words in (
            (other.api_key, "there is no model 'mine'"),
            ("pk_aaaaaaaaaaaa_" + "A" * 43, "unknown or was revoked"),
            ("", "no credential"),
        ):
            with pytest.raises(InferenceServerException) as failed:
                connect(key).infer("mine", [data])
            assert words in failed.value.message()
        with pytest.raises(InferenceServerException) as failed:
            connect(owner.api_key).infer("mine", [data, b"no picture"])
        assert "image[1]" in failed.value.message()


def test_the_expected_boxes_of_photos(platform, connect, transport, yolox_nano, expected):
    """YOLOX-Nano finds by tritonclient what is recorded, several photos in one request."""
    names = list(expected["images"])[:8]
    _, client = platform.tenant(f"triton-photos-{transport}")
    with client:
        client.push_model("city", yolox_nano, classes=expected["class_names"])
        ways = connect(client.api_key)
        pictures = [(SHARED / "photos" / name).read_bytes() for name in names]
        options = {"confidence": "0.30", "iou": "0.45"}
        result = ways.infer("city", pictures, parameters=options)
        for row, name in enumerate(names):
            left = found(result, row)
            for want in expected["images"][name]["detections"]:
                match = [
                    one
                    for one in left
                    if one[0] == want["class_id"]
                    and abs(one[1] - want["confidence"]) <= 0.01
                    and max(abs(a - b) for a, b in zip(one[2], want["bbox"], strict=True)) <= 2
                ]
                assert match, f"{name}: nothing matches {want} among {left}"
                left.remove(match[0])
            assert not left, f"{name}: unexpected {left}"
