"""The SDK's failures: each error arrives as what it is, and is waited out only where that helps."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from polyolo import errors
from tests.unit.recorded_service import (
    ANSWER,
    Says,
    Service,
    awaiting,
    blocking,
    problem,
    running_service,
)


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as service:
        yield service


both = pytest.mark.parametrize("ask", [blocking, awaiting])


@both
@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (problem(401, "unauthenticated", "why"), errors.UnauthenticatedError),
        (problem(403, "forbidden", "why"), errors.ForbiddenError),
        (problem(404, "not-found", "why"), errors.NotFoundError),
        (problem(409, "conflict", "why"), errors.ConflictError),
        (problem(413, "too-large", "why"), errors.TooLargeError),
        (problem(422, "model-refused", "why"), errors.ModelRefusedError),
        (problem(422, "invalid-value", "why"), errors.InvalidValueError),
        (problem(429, "rate-limited", "why", retry_after="40"), errors.RateLimitedError),
        (problem(503, "overloaded", "why", retry_after="40"), errors.OverloadedError),
    ],
)
def test_a_problem_becomes_the_error_it_tells_of(service, ask, says, kind):
    """Class, detail and Retry-After of an error arrive where it is caught."""
    service.on("POST", "/v1/detect", says)
    with pytest.raises(kind, match="why") as caught:
        ask(service.url, "detect", b"x")
    assert type(caught.value) is kind
    assert caught.value.retry_after == (40.0 if "retry-after" in says.headers else None)
    assert len(service.seen) == 1, "longer than the timeout: no use waiting"


@both
def test_a_detection_is_tried_again_while_the_service_is_overloaded(service, ask):
    """503 is waited out for as long as the server says, and then forgotten."""
    busy = problem(503, "overloaded", "busy", retry_after="0")
    service.on("POST", "/v1/detect", busy, busy, Says(body=ANSWER))
    assert ask(service.url, "detect", b"x").request_id == "r1"
    assert [seen.body for seen in service.seen] == [b"x"] * 3


@both
def test_a_picture_from_a_file_is_read_again_for_another_try(service, ask, tmp_path):
    """Each try sends the whole file."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"picture")
    service.on("POST", "/v1/detect", problem(503, "x", "busy", retry_after="0"), Says(body=ANSWER))
    ask(service.url, "detect", path)
    assert [seen.body for seen in service.seen] == [b"picture"] * 2


@both
def test_tries_end(service, ask):
    """A service that stays overloaded is left alone after `retries` more tries."""
    service.on("POST", "/v1/detect", problem(503, "overloaded", "busy", retry_after="0"))
    with pytest.raises(errors.OverloadedError):
        ask(service.url, "detect", b"x", retries=2)
    assert len(service.seen) == 3


@both
def test_what_may_not_happen_twice_is_sent_once(service, ask):
    """Creating is not repeated: the first try may have arrived."""
    service.on("POST", "/api/v1/tenants", problem(503, "not-ready", "x", retry_after="0"))
    with pytest.raises(errors.NotReadyError):
        ask(service.url, "create_tenant", "acme")
    assert len(service.seen) == 1


@both
def test_nobody_at_the_address_is_said_at_once(ask):
    """A refused connection says what to look for, and does not take the whole timeout."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else takes it
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(errors.NotReadyError) as caught:
            ask(url, "list_tenants", timeout=30)
    assert caught.value.detail == f"cannot reach {url}; is `polyolo up` running?"
    assert time.monotonic() - started < 5


@both
def test_a_refused_connection_is_tried_again_even_for_creating(ask):
    """A gateway that restarts is waited for: what never arrived may be sent again."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(errors.NotReadyError):
            ask(url, "create_tenant", "acme", retries=0)
        started = time.monotonic()
        with pytest.raises(errors.NotReadyError):
            ask(url, "create_tenant", "acme", retries=2)
    assert time.monotonic() - started >= 0.3, "two pauses of 0.1 and 0.2 s lie between the tries"


@both
def test_a_service_that_hangs_is_given_up(service, ask):
    """After `timeout` seconds without an answer the call fails, once."""
    service.on("POST", "/v1/detect", Says(hang=True))
    with pytest.raises(errors.DeadlineExceededError):
        ask(service.url, "detect", b"x", timeout=0.3)
    assert len(service.seen) == 1


@both
@pytest.mark.parametrize(
    ("says", "status"),
    [
        (Says(200, b"<html>a login page</html>"), 500),
        (Says(200, {"detections": 3}), 500),
        (Says(502, b"<html>bad gateway</html>"), 502),
        (Says(302, b"", {"location": "https://elsewhere.example"}), 302),
    ],
)
def test_a_stranger_at_the_address_is_a_polyolo_error(service, ask, says, status):
    """Whatever else answers there, the caller gets one kind of exception."""
    service.on("POST", "/v1/detect", says)
    with pytest.raises(errors.PolyoloError) as caught:
        ask(service.url, "detect", b"x")
    assert caught.value.status == status
