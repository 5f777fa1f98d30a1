"""The main job, as each kind of user does it: push a model, send pictures, get boxes."""

import asyncio
import json
import os
import subprocess
import time

import pytest

from polyolo.client import AsyncClient, Client
from polyolo.errors import ForbiddenError, NotFoundError, PolyoloError, UnauthenticatedError
from polyolo.models import bundled
from tests.e2e.platform import POLYOLO, SHARED, eventually

CLUSTER = pytest.param("cluster_platform", marks=[pytest.mark.cluster, pytest.mark.timeout(900)])


@pytest.fixture(scope="module", params=["process_platform", "pod_platform", CLUSTER])
def platform(request):
    """Give a platform for each place where runtimes live."""
    return request.getfixturevalue(request.param)


# What the place of the runtime has no part in is asked once.
once = pytest.mark.parametrize("platform", ["process_platform"], indirect=True)


def boxes(answer) -> list[tuple]:
    return [(d.class_id, d.class_name, d.confidence, tuple(d.bbox)) for d in answer.detections]


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (area - shared)


def assert_same(answer, wanted: list[dict], picture: str) -> None:
    """Assert the same set of boxes: same class, IoU ≥ 0.98, confidence within 0.01."""
    left = list(answer.detections)
    for want in wanted:
        match = [
            d
            for d in left
            if d.class_id == want["class_id"]
            and d.class_name == want["class_name"]
            and overlap(d.bbox, want["bbox"]) >= 0.98
            and abs(d.confidence - want["confidence"]) <= 0.01
        ]
        assert match, f"{picture}: nothing matches {want} among {left}"
        left.remove(match[0])
    assert not left, f"{picture}: unexpected {left}"


def test_a_new_tenant_detects_with_the_standard_model_at_once(platform, board):
    """A tenant that pushed nothing gets an answer from the standard model at once."""
    started = time.monotonic()
    _, client = platform.tenant("newcomer")
    with client:
        answer = client.detect(board)
    took = time.monotonic() - started
    assert answer.model.name == "standard"
    assert answer.detections
    assert took < platform.first_answer_s


@once
def test_the_expected_boxes_of_forty_photos(platform, yolox_nano, expected, tmp_path):
    """All 40 photos give the recorded boxes through the whole platform."""
    _, client = platform.tenant("photos")
    with client:
        client.push_model("city", yolox_nano, classes=expected["class_names"])
        for name, want in expected["images"].items():
            answer = client.detect(SHARED / "photos" / name, confidence=0.30, iou=0.45)
            assert (answer.model.name, answer.model.version) == ("city", 1)
            assert (answer.image.width, answer.image.height) == (want["width"], want["height"])
            assert_same(answer, want["detections"], name)


def test_curl_the_sdk_and_the_command_give_the_same_boxes(platform, board):
    """Four ways in, one answer."""
    _, client = platform.tenant("four-ways")
    with client:
        wanted = boxes(client.detect(board))
    assert wanted

    async def ask() -> list[tuple]:
        async with AsyncClient(platform.url, client.api_key) as asynchronous:
            return boxes(await asynchronous.detect(board))

    assert asyncio.run(ask()) == wanted

    def as_boxes(document: dict) -> list[tuple]:
        return [
            (d["class_id"], d["class_name"], d["confidence"], tuple(d["bbox"]))
            for d in document["detections"]
        ]

    url, key = f"{platform.url}/v1/detect", f"Authorization: Bearer {client.api_key}"
    raw = ["curl", "-sf", "-H", key, "--data-binary", f"@{board}", url]
    form = ["curl", "-sf", "-H", key, "-F", f"image=@{board}", url]
    for command in (raw, form):
        done = subprocess.run(command, capture_output=True, check=True)
        assert as_boxes(json.loads(done.stdout)) == wanted

    done = subprocess.run(
        [POLYOLO, "detect", board, "--json"],
        env=os.environ | {"POLYOLO_URL": platform.url, "POLYOLO_API_KEY": client.api_key},
        capture_output=True,
        check=True,
    )
    assert as_boxes(json.loads(done.stdout)[0]) == wanted


def test_one_tenants_key_opens_nothing_of_another(platform, board):
    """A's key reaches neither B's models, nor its records; both look as if they did not exist."""
    _, client_a = platform.tenant("apart-a")
    b, client_b = platform.tenant("apart-b")
    with client_a, client_b:
        client_b.push_model("secret", bundled("pcb", 1))
        with pytest.raises(NotFoundError) as foreign:
            client_a.detect(board, model="secret")
        with pytest.raises(NotFoundError) as missing:
            client_a.detect(board, model="nonsuch")
        assert foreign.value.detail.replace("secret", "nonsuch") == missing.value.detail
        refusals = set()
        for tenant in (b.id, b.name, "nonsuch"):
            with pytest.raises(NotFoundError) as refused:
                client_a.list_models(tenant=tenant)
            refusals.add(refused.value.detail.replace(tenant, "…"))
        assert len(refusals) == 1  # they differ in what was asked for, and in nothing else
        assert [m.name for m in client_b.list_models()] == ["secret", "standard"]
    forged = Client(platform.url, client_a.api_key[:-4] + "AAAA")
    with forged, pytest.raises(UnauthenticatedError):
        forged.detect(board)


@once
def test_usage_counts_each_request_once(platform, board):
    """Seven good requests and one bad one are what the tenant is said to have used."""
    _, client = platform.tenant("counted")
    with client:
        for _ in range(7):
            client.detect(board)
        with pytest.raises(NotFoundError):
            client.detect(board, model="nonsuch")
        usage = eventually(
            lambda: (u := client.usage()) and u.requests >= 8 and u, within=5, what="usage arrives"
        )
        assert (usage.requests, usage.images, usage.errors) == (8, 7, 1)
        assert usage.engine_ms > 0


def test_a_suspended_tenant_is_refused_and_a_resumed_one_served(platform, board):
    """Suspension closes the door with 403; its end opens it again."""
    tenant, client = platform.tenant("paused")
    with client, platform.operator() as operator:
        client.detect(board)
        operator.suspend_tenant(tenant.id)
        eventually(
            lambda: _raises(ForbiddenError, lambda: client.detect(board)), within=2, what="403"
        )
        operator.resume_tenant(tenant.id)
        answer = eventually(lambda: _answer(client, board), within=5, what="served again")
        assert answer.detections


def _raises(kind, call) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def _answer(client, board):
    try:
        return client.detect(board)
    except PolyoloError:
        return None
