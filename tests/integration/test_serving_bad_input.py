"""Bad input at the runtime: its status, a problem document, flat memory, the next one served."""

from __future__ import annotations

import select
import socket
import struct
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.integration.runtime import Runtime, eventually, picture, yolov8

LARGE = 30 * 1024 * 1024


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("city", yolov8())
    try:
        runtime.start()
        runtime.detect(picture())
        yield runtime
    finally:
        runtime.close()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def refused(runtime: Runtime, answer: httpx.Response, status: int) -> str:
    """Check that an answer is a problem document and that service goes on; return the detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "instance"} <= problem.keys()
    assert answer.headers["x-request-id"]
    assert len(runtime.detect(picture())["detections"]) == 2
    return problem["detail"]


BODIES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "empty": (lambda good: b"", 400),
    "text": (lambda good: b"hello, this is not a picture", 415),
    "truncated JPEG": (lambda good: good[: len(good) // 2], 422),
    "JPEG of garbage": (lambda good: good[:300] + bytes(range(256)) * 8, 422),
    "a huge PNG's header": (lambda good: png_header(100_000, 100_000), 413),
    "30 MB": (lambda good: good + bytes(LARGE), 413),
    "GIF": (lambda good: b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;", 415),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_bad_body(runtime: Runtime, what: str):
    """Each body gets its status; none reaches the queue or the model."""
    make, status = BODIES[what]
    ran = runtime.metric('polyolo_inference_duration_seconds_count{model="city",tenant="t_test"}')
    answer = runtime.client.post("/v1/detect", content=make(picture()))
    refused(runtime, answer, status)
    runs = runtime.metric('polyolo_inference_duration_seconds_count{model="city",tenant="t_test"}')
    assert runs == ran + 1, "only the good request after it"


def test_a_body_of_unknown_length_is_refused_once_it_is_too_long(runtime: Runtime):
    """Chunks without a Content-Length are counted."""

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(1024 * 1024)

    refused(runtime, runtime.client.post("/v1/detect", content=chunks()), 413)


def test_memory_stays_flat(runtime: Runtime):
    """A refused picture is let go of at once, not when the garbage collector comes by."""
    large = bytes(15_000_000)

    def round_() -> int:
        """Return the most memory seen between the requests of a round."""
        bodies = [(make(picture()), status) for make, status in BODIES.values()] + [(large, 415)]
        seen = []
        for body, status in bodies:
            assert runtime.client.post("/v1/detect", content=body).status_code == status
            runtime.detect(picture())
            seen.append(runtime.resident())
        assert runtime.client.post("/v1/detect", files={"file": large}).status_code == 415
        assert runtime.client.post("/v1/detect?iou=7", content=large).status_code == 422
        runtime.detect(picture())
        return max(*seen, runtime.resident())

    before = min(round_() for _ in range(3))
    assert max(round_() for _ in range(10)) - before < 12_000_000
    form = httpx.Request("POST", "http://x", files={"file": large})
    kinds = [{}, {"content-type": form.headers["content-type"]}]
    # Nothing comes between these that would make the collector run.
    for headers, body in zip(kinds * 4, [large, form.read()] * 4, strict=True):
        answer = runtime.client.post("/v1/detect", content=body, headers=headers)
        assert answer.status_code == 415
        eventually(lambda: runtime.resident() - before < 12_000_000, within=3)


def raw(runtime: Runtime, head: str) -> socket.socket:
    """Send a request's head and return the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(runtime.socket))
    connection.sendall(f"POST /v1/detect HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
    return connection


def test_a_length_that_is_too_long_is_refused_before_the_body_is_sent(runtime: Runtime):
    """The answer comes although no byte of the body does."""
    with raw(runtime, f"content-length: {LARGE}") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_end_is_refused_at_the_limit(runtime: Runtime):
    """The answer comes while the body is still being sent, soon after its 20 MiB."""
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with raw(runtime, "transfer-encoding: chunked") as connection:
        sent = 0
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(chunk)
            sent += 1
            assert sent < 25, "it takes whatever comes"
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("query", "status", "named"),
    [
        ("confidence=1.5", 422, "confidence"),
        ("confidence=nan", 422, "confidence"),
        ("confidence=inf", 422, "confidence"),
        ("confidence=high", 422, "between 0 and 1"),
        ("iou=-0.1", 422, "iou"),
        ("max_detections=0", 422, "1 to 1000"),
        ("max_detections=1e9", 422, "max_detections"),
        ("classes=unicorn", 422, "unicorn"),
        ("classes=99999", 422, "99999"),
        ("classes=" + "9" * 5000, 422, "9999"),
        ("classes=", 422, "classes"),
        ("classes=dog,,cat", 422, "classes"),
        ("confidence=0.5&confidence=0.6", 422, "twice"),
        ("confidnce=0.9", 422, "confidence"),
        ("model=nonsuch", 404, "nonsuch"),
        ("model=city:77", 404, "city:77"),
        ("model=city:latest", 404, "city:latest"),
        ("model=", 404, "model"),
    ],
)
def test_a_wrong_parameter_is_named(runtime: Runtime, query: str, status: int, named: str):
    """The problem says which parameter is wrong, and what is right."""
    answer = runtime.client.post(f"/v1/detect?{query}", content=picture())
    assert named in refused(runtime, answer, status)


@pytest.mark.parametrize("timeout", ["0", "-5", "soon", "99999999999", "1.5"])
def test_a_deadline_that_is_none(runtime: Runtime, timeout: str):
    """The header is refused by name, not ignored."""
    answer = runtime.client.post(
        "/v1/detect", content=picture(), headers={"polyolo-timeout-ms": timeout}
    )
    assert "Polyolo-Timeout-Ms" in refused(runtime, answer, 422)


GOOD_PART = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=x", b"--x\r\nthis is no header\r\n\r\n\xff\xd8"),
        ("multipart/form-data; boundary=x", GOOD_PART + b"cut off"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=y", GOOD_PART + b"a\r\n--x--\r\n"),
        ("multipart/form-data", GOOD_PART + b"a\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 100, b"abc"),
        ("Multipart/Form-Data; boundary=x", GOOD_PART + b"\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", (GOOD_PART + b"a\r\n") * 2 + b"--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\na\r\n' * 99 + b"--x--\r\n",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 100_000),
    ],
    ids=range(10),
)
def test_a_broken_form(runtime: Runtime, kind: str, body: bytes):
    """No header, no end, no body, no boundary, a long one, no bytes, two pictures, many fields."""
    answer = runtime.client.post("/v1/detect", content=body, headers={"content-type": kind})
    refused(runtime, answer, 400)


def test_a_form_without_a_picture_and_one_with_a_parameter_in_it(runtime: Runtime):
    """A form needs a field image or file; parameters belong into the query, and it says so."""
    without = runtime.client.post("/v1/detect", files={"photo": picture()})
    assert "image" in refused(runtime, without, 400)
    inside = runtime.client.post(
        "/v1/detect", files={"image": picture()}, data={"confidence": "0.9"}
    )
    assert "query" in refused(runtime, inside, 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"tenant":"t_test","generation":9,"default_model":"x","models":[]}', 422),
        (b'{"tenant":"t_else","generation":9,"default_model":"x","models":[]}', 422),
    ],
)
def test_a_spec_that_cannot_be_used_changes_nothing(runtime: Runtime, body: bytes, status: int):
    """The runtime keeps what it serves."""
    before = runtime.status()
    refused(runtime, runtime.client.put("/runtime/spec", content=body), status)
    assert runtime.status() == before


def test_another_tenants_spec_is_refused(runtime: Runtime):
    """A runtime never changes hands."""
    spec = {**runtime.spec(), "tenant": "t_else"}
    refused(runtime, runtime.client.put("/runtime/spec", json=spec), 409)
