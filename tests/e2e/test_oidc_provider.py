"""Sign-in through a provider that others wrote, from `polyolo up`'s options to a detection."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from polyolo import models
from tests.e2e.platform import POLYOLO, Platform, eventually, free_port

SECRET = "canary-provider-secret-5d1b"
ANN = {"sub": "ann-at-provider", "email": "ann@oidc.example", "email_verified": True}
START = "/api/v1/sign-in/oidc"


@pytest.fixture
def provider() -> Iterator[str]:
    """Run an OpenID Connect provider; give its URL. Its keys are RSA, its clients all who ask."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--require-nonce", "true", "--user-claims", json.dumps(ANN)]
    process = subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None, "the provider ended"
        try:
            return httpx.get(f"{url}/.well-known/openid-configuration").is_success
        except httpx.HTTPError:
            return False

    try:
        eventually(answers, within=20, what="the provider answers")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def at_provider(url: str) -> str:
    """Fill in the provider's form as a person does; return where it sends the browser."""
    with httpx.Client(trust_env=False) as http:
        assert "authorize" in http.get(url).text.lower()
        answer = http.post(url, data={"sub": ANN["sub"]})
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


def test_from_a_foreign_provider_to_a_detection(
    fresh_platform: Platform, provider: str, board, monkeypatch
):
    """Register by POST, sign in by a link, detect with a key made in that session."""
    monkeypatch.setenv("POLYOLO_OIDC_CLIENT_SECRET", SECRET)
    fresh_platform.start(
        *("--oidc-issuer", provider, "--oidc-client-id", "polyolo", "--oidc-name", "Example ID")
    )
    base = fresh_platform.url
    with httpx.Client(base_url=base, timeout=30, trust_env=False) as http:
        ways = http.get("/api/v1/sign-in").json()
        assert ways == {"registration": "open", "provider": "Example ID"}

        away = http.get(START).headers["location"]
        assert urlsplit(away).netloc == urlsplit(provider).netloc
        refused = http.get(at_provider(away), headers={"accept": "text/html"})
        assert refused.status_code == 403
        assert "nobody here is known" in refused.text

        begun = http.post(START, json={"organization": "Oidc", "next": "/docs"})
        back = at_provider(begun.json()["url"])
        assert back.startswith(f"{base}{START}/callback?")
        answer = http.get(back)
        assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
        assert http.get(back).status_code == 400
        session = http.get("/api/v1/sessions/current").json()
        assert session["user"]["email"] == ANN["email"]

        http.cookies.clear()
        answer = http.get(at_provider(http.get(START).headers["location"]), follow_redirects=True)
        assert answer.json()["user"]["id"] == session["user"]["id"]
        csrf = {"x-csrf-token": answer.json()["csrf_token"]}
        key = http.post("/api/v1/tenants/me/keys", json={}, headers=csrf).json()["key"]
        http.cookies.clear()
        bearer = {"authorization": f"Bearer {key}"}
        found = http.post("/v1/detect", content=board.read_bytes(), headers=bearer)
        assert found.status_code == 200, found.text
        assert found.json()["detections"]

    assert fresh_platform.stop() == 0
    files = [path for path in fresh_platform.home.rglob("*") if path.is_file()]
    for canary in (SECRET, ANN["sub"], ANN["email"]):
        assert not [path for path in files if canary.encode() in path.read_bytes()], canary


def test_a_control_plane_of_its_own_is_told_its_public_url(fresh_platform: Platform):
    """Tokens are for that URL, strangers need an invitation, the provider is named by its host."""
    home = fresh_platform.home
    command = [
        *(POLYOLO, "control", "--home", home, "--standard-model", models.bundled(*models.STANDARD)),
        *("--public-url", "https://yolo.example.com"),
        *("--oidc-issuer", "https://login.example.com", "--oidc-client-id", "polyolo"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    path = str(home / "run/control.sock")

    def listens() -> bool:
        assert process.poll() is None, "control ended"
        with socket.socket(socket.AF_UNIX) as tried, suppress(OSError):
            tried.connect(path)
            return True
        return False

    try:
        eventually(listens, within=20, what="control listens")
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport, base_url="http://control", timeout=30) as http:
            described = http.get("/.well-known/oauth-authorization-server").json()
            assert described["issuer"] == "https://yolo.example.com"
            ways = {"registration": "invite", "provider": "login.example.com"}
            assert http.get("/api/v1/sign-in").json() == ways
    finally:
        process.terminate()
        assert process.wait(timeout=40) == 0
