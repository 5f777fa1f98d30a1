"""Bad input through the door: the contract's status, quickly, and the next good request served."""

import os
import struct
import time
import zlib
from pathlib import Path

import httpx
import pytest

LARGE = 30 * 1024 * 1024


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.fixture(scope="module")
def tenant(platform):
    tenant, client = platform.tenant("clumsy")
    with client:
        yield tenant, client


@pytest.fixture(scope="module")
def http(platform, tenant):
    _, client = tenant
    with httpx.Client(
        base_url=platform.url, headers={"authorization": f"Bearer {client.api_key}"}, timeout=20
    ) as http:
        yield http


def memory(platform, tenant) -> int:
    """Return the resident bytes of the tenant's runtime."""
    pid = platform.runtime_pid(tenant)
    statm = Path(f"/proc/{pid}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


BODIES = {
    "empty": (lambda good: b"", 400),
    "text": (lambda good: b"hello, this is not a picture", 415),
    "truncated JPEG": (lambda good: good[: len(good) // 2], 422),
    "JPEG of garbage": (lambda good: good[:600] + os.urandom(2000), 422),
    "a huge PNG's header": (lambda good: png_header(100_000, 100_000), 413),
    "30 MB": (lambda good: good + bytes(LARGE), 413),
    "GIF": (lambda good: b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;", 415),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_bad_body(platform, tenant, http, board, what):
    """Each bad body gets its status and problem document, fast; memory stays; service goes on."""
    make, status = BODIES[what]
    good = board.read_bytes()
    assert http.post("/v1/detect", content=good).status_code == 200
    before = memory(platform, tenant[0])
    started = time.monotonic()
    answer = http.post("/v1/detect", content=make(good))
    took = time.monotonic() - started
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert problem["status"] == status
    assert answer.headers["x-request-id"]
    assert took < 1.0
    assert http.post("/v1/detect", content=good).status_code == 200
    assert memory(platform, tenant[0]) - before < 30 * 1024 * 1024


def test_thirty_megabytes_in_chunks_of_unknown_length(http, board):
    """A body that does not say its length is refused once it is too long."""

    def chunks():
        for _ in range(30):
            yield bytes(1024 * 1024)

    assert http.post("/v1/detect", content=chunks()).status_code == 413


PARAMETERS = {
    "confidence=1.5": (422, "confidence"),
    "confidence=nan": (422, "confidence"),
    "confidence=high": (422, "confidence"),
    "iou=-0.1": (422, "iou"),
    "max_detections=0": (422, "max_detections"),
    "max_detections=1e9": (422, "max_detections"),
    "classes=unicorn": (422, "unicorn"),
    "classes=99999": (422, "99999"),
    "model=nonsuch": (404, "nonsuch"),
    "model=standard:77": (404, "standard:77"),
    "model=": (404, "model"),
}


@pytest.mark.parametrize("query", PARAMETERS)
def test_a_wrong_parameter(http, board, query):
    """A wrong parameter is named in the problem document."""
    status, named = PARAMETERS[query]
    answer = http.post(f"/v1/detect?{query}", content=board.read_bytes())
    assert answer.status_code == status, answer.text
    assert named in answer.json()["detail"]


CREDENTIALS = {
    "none": {},
    "unknown": {"authorization": "Bearer pk_aaaaaaaaaaaa_" + "b" * 43},
    "malformed": {"authorization": "Bearer hello"},
    "wrong scheme": {"authorization": "Basic dXNlcjpwYXNz"},
    "binary": {"x-api-key": b"\xff\xfe\x00\x01".hex()},
    "endless": {"x-api-key": "pk_" + "a" * 8000},
}


@pytest.mark.parametrize("what", CREDENTIALS)
def test_a_bad_credential(platform, board, what):
    """A wrong, missing or malformed key gets 401 with the challenge."""
    answer = httpx.post(
        f"{platform.url}/v1/detect", content=board.read_bytes(), headers=CREDENTIALS[what]
    )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["status"] == 401


def test_a_broken_form_and_one_without_a_picture(http):
    """A multipart body that cannot be read, or holds no picture, is a malformed request."""
    broken = http.post(
        "/v1/detect",
        content=b"--x\r\nthis is no header\r\n\r\n\xff\xd8",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    without = http.post("/v1/detect", files={"picture": b"\xff\xd8"})
    unbounded = http.post(
        "/v1/detect", content=b"abc", headers={"content-type": "multipart/form-data"}
    )
    assert (broken.status_code, without.status_code, unbounded.status_code) == (400, 400, 400)
