"""The SDK says what it was asked to say, understands the answers, and tries again with measure."""

from __future__ import annotations

import inspect
import io
import tracemalloc
from collections.abc import Iterator
from urllib.parse import parse_qsl

import pytest

from polyolo import errors
from polyolo.client import AsyncClient, Client, accounts, auditing, credentials, operations
from polyolo.errors import UnauthenticatedError
from tests.unit.recorded_service import (
    ANSWER,
    CLIENT,
    KEY,
    MODEL,
    SETTINGS,
    TENANT,
    TOKEN,
    USAGE,
    VERSION,
    Says,
    Service,
    awaiting,
    blocking,
    running_service,
)


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as service:
        yield service


both = pytest.mark.parametrize("ask", [blocking, awaiting])


def test_both_clients_have_every_operation():
    """Whatever is defined as an operation, both clients offer by the same name and signature."""
    defined = {
        name: thing
        for module in (operations, credentials, accounts, auditing)
        for name, thing in vars(module).items()
        if inspect.isfunction(thing)
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert len(defined) > 20
    for name, operation in defined.items():
        wanted = inspect.signature(operation).parameters
        for kind in (Client, AsyncClient):
            bound = getattr(kind("http://127.0.0.1:1"), name)
            assert inspect.signature(bound).parameters == wanted
            assert bound.__doc__ == operation.__doc__


@both
def test_a_detection_carries_key_picture_and_parameters(service, ask):
    """The body is the picture itself, parameters are the query, the answer is a DetectAnswer."""
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    answer = ask(
        service.url,
        "detect",
        b"\xff\xd8picture",
        model="city:3",
        confidence=0.3,
        iou=0.5,
        classes=["tv", 3],
        max_detections=7,
    )
    (seen,) = service.seen
    assert seen.body == b"\xff\xd8picture"
    assert seen.headers["authorization"] == "Bearer pk_a_b"
    assert seen.query == [
        ("model", "city:3"),
        ("confidence", "0.3"),
        ("iou", "0.5"),
        ("classes", "tv,3"),
        ("max_detections", "7"),
    ]
    assert str(answer.model) == "city:3"
    assert answer.detections[0].bbox == (5.86, 165.78, 155.77, 264.61)
    assert answer.timing_ms.inference == 8.2


@both
@pytest.mark.parametrize("form", ["bytes", "str", "path", "file"])
def test_a_picture_may_be_bytes_a_path_or_an_open_file(service, ask, form, tmp_path):
    """All forms send the same bytes with their length, and nothing as a query."""
    picture = bytes(range(256)) * 9000  # more than one chunk
    path = tmp_path / "a.jpg"
    path.write_bytes(picture)
    forms = {"bytes": picture, "str": str(path), "path": path, "file": io.BytesIO(picture)}
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    ask(service.url, "detect", forms[form])
    assert service.seen[0].body == picture
    assert "transfer-encoding" not in service.seen[0].headers
    assert service.seen[0].query == []


@both
def test_an_access_token_is_asked_for_by_form_and_without_the_clients_own_key(service, ask):
    """The secret goes into the body only; an API key at hand is not sent along."""
    service.on("POST", "/oauth2/token", Says(body=TOKEN))
    token = ask(service.url, "access_token", "oc_a", "cs_b", scopes=["detect", "models:read"])
    assert (token.access_token, token.expires_in) == (TOKEN["access_token"], 900)
    (seen,) = service.seen
    assert "authorization" not in seen.headers
    assert dict(parse_qsl(seen.body.decode())) == {
        "grant_type": "client_credentials",
        "client_id": "oc_a",
        "client_secret": "cs_b",
        "scope": "detect models:read",
    }


@both
def test_a_refused_access_token_is_told_in_the_servers_words(service, ask):
    """OAuth2 words its errors in its own way; people read the same kind of sentence."""
    body = {"error": "invalid_client", "error_description": "client id or secret is wrong"}
    service.on("POST", "/oauth2/token", Says(401, body))
    with pytest.raises(UnauthenticatedError, match="client id or secret is wrong"):
        ask(service.url, "access_token", "oc_a", "cs_b")


@both
def test_an_annotated_picture_is_asked_for_by_its_type(service, ask):
    """`detect_annotated` returns the answer's bytes."""
    service.on("POST", "/v1/detect", Says(body=b"\x89PNG"))
    assert ask(service.url, "detect_annotated", b"x", format="png") == b"\x89PNG"
    assert service.seen[0].headers["accept"] == "image/png"


@pytest.mark.parametrize(
    ("operation", "arguments", "method", "path", "body", "answer"),
    [
        ("create_tenant", {"name": "acme"}, "POST", "/tenants", {"name": "acme"}, TENANT),
        ("list_tenants", {}, "GET", "/tenants", None, {"tenants": [TENANT]}),
        ("get_tenant", {}, "GET", "/tenants/me", None, TENANT),
        ("suspend_tenant", {"tenant": "a"}, "PATCH", "/tenants/a", {"state": "suspended"}, TENANT),
        ("resume_tenant", {"tenant": "a"}, "PATCH", "/tenants/a", {"state": "active"}, TENANT),
        ("delete_tenant", {"tenant": "a"}, "DELETE", "/tenants/a", None, None),
        (
            "create_key",
            {"name": "n", "scopes": ["detect"], "expires_in": "90d"},
            "POST",
            "/tenants/me/keys",
            {"name": "n", "scopes": ["detect"], "expires_in": "90d"},
            KEY,
        ),
        ("create_key", {"tenant": "a"}, "POST", "/tenants/a/keys", {}, KEY),
        ("list_keys", {}, "GET", "/tenants/me/keys", None, {"keys": [KEY]}),
        ("rotate_key", {"key_id": "k"}, "POST", "/tenants/me/keys/k/rotate", {}, KEY),
        (
            "create_key",
            {"sources": ["10.0.0.0/8"]},
            "POST",
            "/tenants/me/keys",
            {"sources": ["10.0.0.0/8"]},
            KEY,
        ),
        (
            "rotate_key",
            {"key_id": "k", "overlap": "1h"},
            "POST",
            "/tenants/me/keys/k/rotate",
            {"overlap": "1h"},
            KEY,
        ),
        (
            "create_oauth_client",
            {"name": "ci", "scopes": ["detect"]},
            "POST",
            "/tenants/me/oauth-clients",
            {"name": "ci", "scopes": ["detect"]},
            CLIENT,
        ),
        (
            "list_oauth_clients",
            {},
            "GET",
            "/tenants/me/oauth-clients",
            None,
            {"clients": [CLIENT]},
        ),
        (
            "rotate_oauth_client",
            {"client_id": "c", "overlap": "1h"},
            "POST",
            "/tenants/me/oauth-clients/c/rotate",
            {"overlap": "1h"},
            CLIENT,
        ),
        (
            "revoke_oauth_client",
            {"client_id": "c"},
            "DELETE",
            "/tenants/me/oauth-clients/c",
            None,
            None,
        ),
        ("revoke_key", {"key_id": "k"}, "DELETE", "/tenants/me/keys/k", None, None),
        ("rotate_signing_keys", {}, "POST", "/signing-keys/rotate", {}, None),
        ("list_models", {}, "GET", "/tenants/me/models", None, {"models": [MODEL]}),
        ("get_model", {"name": "city"}, "GET", "/tenants/me/models/city", None, MODEL),
        (
            "get_version",
            {"name": "c", "version": 2},
            "GET",
            "/tenants/me/models/c/versions/2",
            None,
            VERSION,
        ),
        (
            "use_model",
            {"name": "c", "version": 2},
            "POST",
            "/tenants/me/models/c/use",
            {"version": 2},
            MODEL,
        ),
        ("rollback_model", {"name": "c"}, "POST", "/tenants/me/models/c/rollback", {}, MODEL),
        ("delete_model", {"name": "c"}, "DELETE", "/tenants/me/models/c", None, None),
        ("get_settings", {"name": "c"}, "GET", "/tenants/me/models/c/settings", None, SETTINGS),
        (
            "change_settings",
            {"name": "c", "confidence": 0.4},
            "PATCH",
            "/tenants/me/models/c/settings",
            {"confidence": 0.4},
            SETTINGS,
        ),
        (
            "change_settings",
            {"name": "c", "classes": ()},
            "PATCH",
            "/tenants/me/models/c/settings",
            {"classes": None},
            SETTINGS,
        ),
        ("get_runtime", {}, "GET", "/tenants/me/runtime", None, TENANT["runtime"]),
        ("usage", {"tenant": "a"}, "GET", "/tenants/a/usage", None, USAGE),
        ("list_usage", {}, "GET", "/usage", None, {"usage": [USAGE]}),
    ],
)
def test_each_operation_of_the_control_plane(
    service, operation, arguments, method, path, body, answer
):
    """Each operation is one request of the control API, and its answer becomes our noun."""
    service.on(method, f"/api/v1{path}", Says(204 if answer is None else 200, answer))
    result = blocking(service.url, operation, **arguments)
    (seen,) = service.seen
    assert (seen.json if seen.body else None) == body
    assert (result is None) == (answer is None)
    if operation.startswith("list_"):
        assert [type(thing).__name__ for thing in result] in (
            [kind] for kind in ("Tenant", "ApiKey", "OAuthClient", "Model", "Usage")
        )


def test_a_period_of_usage_is_the_query(service):
    """Usage is asked for from and until unix seconds."""
    service.on("GET", "/api/v1/tenants/me/usage", Says(body=USAGE))
    assert blocking(service.url, "usage", since=1.0, until=2.5).models[0].model == "city"
    assert service.seen[0].query == [("since", "1.0"), ("until", "2.5")]


@both
def test_an_upload_streams_the_file_and_tells_its_progress(service, ask, tmp_path):
    """A model file of 48 MiB goes out with its length, and never lies in memory as a whole."""
    size = 48 << 20
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(size)
    service.keep_bodies = False
    service.on_push()
    told = []
    tracemalloc.start()
    version = ask(
        service.url,
        "push_model",
        "city",
        path,
        classes=["tv", "cat, big"],
        progress=lambda sent, total: told.append((sent, total)),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert version.version == 2
    sent = next(seen for seen in service.seen if seen.method == "PATCH")
    assert sent.length == size
    assert sent.headers["upload-offset"] == "0"
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert peak < 16 << 20


@pytest.mark.parametrize("url", ["", "127.0.0.1:8700", "ftp://host", "http://", "x y"])
def test_a_malformed_url_is_refused_at_once(url, monkeypatch):
    """A URL that cannot work is refused before anything is sent."""
    monkeypatch.setenv("POLYOLO_URL", url or "nonsense")
    with pytest.raises(errors.InvalidValueError, match="POLYOLO_URL"):
        Client()


def test_the_environment_says_where_and_as_whom(service, monkeypatch):
    """POLYOLO_URL and POLYOLO_API_KEY are the defaults."""
    monkeypatch.setenv("POLYOLO_URL", service.url + "/")
    monkeypatch.setenv("POLYOLO_API_KEY", "pk_from_env\n")
    service.on("GET", "/api/v1/tenants/me", Says(body=TENANT))
    with Client() as client:
        assert client.get_tenant().name == "acme"
    assert service.seen[0].headers["authorization"] == "Bearer pk_from_env"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(service, monkeypatch):
    """HTTP_PROXY is for the internet; a local platform is reached directly."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    service.on("GET", "/api/v1/tenants/me", Says(body=TENANT))
    assert blocking(service.url, "get_tenant").name == "acme"
    assert awaiting(service.url, "get_tenant").name == "acme"


@both
def test_a_mangled_key_is_said_before_anything_is_sent(service, ask):
    """A key copied with a typographic dash or a line break inside cannot be a header."""
    for key in ("pk_abc\u2013def", "pk_abc\ndef"):
        with pytest.raises(errors.UnauthenticatedError, match="copy it again"):
            ask(service.url, "get_tenant", key=key)
    assert service.seen == []


def test_a_name_stays_one_part_of_the_path(service):
    """No name can turn a call into another one."""
    with pytest.raises(errors.NotFoundError, match="a%2F"):
        blocking(service.url, "get_model", "a/../b?c#d")
    assert service.seen[0].path == "/api/v1/tenants/me/models/a%2F..%2Fb%3Fc%23d"
    for name in ("", ".", ".."):
        with pytest.raises(errors.InvalidValueError):
            blocking(service.url, "delete_model", name)
    assert len(service.seen) == 1


@both
def test_a_missing_picture_is_the_operating_systems_error(service, ask, tmp_path):
    """A path that is not there is FileNotFoundError, as `open` would raise."""
    with pytest.raises(FileNotFoundError):
        ask(service.url, "detect", tmp_path / "none.jpg")
    assert service.seen == []
