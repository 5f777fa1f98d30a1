"""How the SDK pushes a model file: goes on where a connection broke off, tells of a refusal."""

from __future__ import annotations

import hashlib

import pytest

from polyolo import errors
from tests.unit.recorded_service import (
    UPLOAD,
    Says,
    awaiting,
    blocking,
    problem,
    running_service,
)

both = pytest.mark.parametrize("ask", [blocking, awaiting])
UPLOADS = "/api/v1/tenants/me/uploads"


@pytest.fixture
def service():
    with running_service() as service:
        yield service


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


def said(service) -> list[str]:
    return [f"{seen.method} {seen.path.removeprefix(UPLOADS)}" for seen in service.seen]


@both
def test_a_push_is_opened_sent_and_watched(service, ask, file):
    """Size, sha256 and class names go first; the file follows; the version is asked for last."""
    path = service.on_push()
    service.on(
        "GET",
        path,
        *(Says(body=UPLOAD | {"state": state}) for state in ("received", "checking")),
        Says(body=UPLOAD | {"state": "ready", "version": 2}),
    )
    assert ask(service.url, "push_model", "city", file, classes=["tv"]).version == 2
    opened = service.seen[1]
    assert opened.json == {
        "model": "city",
        "size": 5,
        "sha256": hashlib.sha256(b"model").hexdigest(),
        "classes": ["tv"],
    }
    assert len(opened.headers["idempotency-key"]) > 16
    watched = [seen for seen in service.seen if seen.path == path and seen.method == "GET"]
    assert [seen.query for seen in watched] == [[], [("wait", "20")], [("wait", "20")]]


@both
def test_it_goes_on_where_the_connection_broke_off(service, ask, file):
    """After an error on the way the service says how far it came; only the rest is sent."""
    path = service.on_push()
    service.on("PATCH", path, problem(503, "not-ready", "restarting", retry_after="0"), Says(204))
    service.on(
        "GET",
        path,
        Says(body=UPLOAD | {"received": 3}),
        Says(body=UPLOAD | {"state": "ready", "version": 2}),
    )
    told = []
    ask(service.url, "push_model", "city", file, progress=lambda *at: told.append(at))
    first, second = (seen for seen in service.seen if seen.method == "PATCH")
    assert (first.headers["upload-offset"], first.body) == ("0", b"model")
    assert (second.headers["upload-offset"], second.body) == ("3", b"el")
    assert told[-1] == (5, 5)


@both
def test_another_program_goes_on_with_the_same_push(service, ask, file):
    """The same file for the same model that is still open: nothing new is opened."""
    path = service.on_push()
    mine = UPLOAD | {"sha256": hashlib.sha256(b"model").hexdigest()}
    others = [mine | {"model": "farm"}, mine | {"sha256": "0" * 64}, mine | {"classes": ["a"]}]
    service.on("GET", UPLOADS, Says(body={"uploads": [*others, mine]}))
    service.on(
        "GET",
        path,
        Says(body=mine | {"received": 4}),
        Says(body=mine | {"state": "ready", "version": 2}),
    )
    ask(service.url, "push_model", "city", file)
    (sent,) = (seen for seen in service.seen if seen.method == "PATCH")
    assert (sent.headers["upload-offset"], sent.body) == ("4", b"l")
    assert "POST " not in said(service)


@both
def test_a_refusal_is_the_error_with_its_reason(service, ask, file):
    """Whatever the platform found, as the class that it names."""
    service.on_push(state="refused", version=None, code="model-refused", reason="it is a zip")
    with pytest.raises(errors.ModelRefusedError, match="it is a zip"):
        ask(service.url, "push_model", "city", file)


@both
def test_what_trying_again_cannot_help_is_told_at_once(service, ask, file):
    """Too large, not allowed: one try, no pause."""
    path = service.on_push()
    service.on("PATCH", path, problem(413, "too-large", "the file is larger"))
    with pytest.raises(errors.TooLargeError):
        ask(service.url, "push_model", "city", file)
    assert said(service).count(f"PATCH /{UPLOAD['id']}") == 1


@both
def test_patience_has_an_end(service, ask, file, monkeypatch):
    """A service that takes no byte is given up on, with its own words."""
    monkeypatch.setattr("polyolo.client.uploads._PATIENCE", 2)
    path = service.on_push()
    service.on("PATCH", path, problem(503, "not-ready", "the disk is asleep", retry_after="0"))
    service.on("GET", path, Says(body=UPLOAD))
    with pytest.raises(errors.NotReadyError, match="asleep"):
        ask(service.url, "push_model", "city", file)
    assert said(service).count(f"PATCH /{UPLOAD['id']}") == 3


def test_a_file_that_is_not_there_is_said_before_anything_is_sent(service, tmp_path):
    """FileNotFoundError, as `open` would raise."""
    with pytest.raises(FileNotFoundError):
        blocking(service.url, "push_model", "city", tmp_path / "none.onnx")
    assert service.seen == []
