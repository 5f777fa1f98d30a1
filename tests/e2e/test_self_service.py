"""From a clean start to a revoked key with nothing but HTTP: the docs' quick start, run."""

from __future__ import annotations

import time

import httpx

from tests.e2e.platform import eventually


def test_from_registration_to_a_revoked_key(platform, board):
    """Register, detect, make an OAuth client, detect with its token, rotate and revoke the key."""
    picture = board.read_bytes()
    with httpx.Client(base_url=platform.url, timeout=30, trust_env=False) as http:

        def bearer(credential: str) -> dict[str, str]:
            return {"authorization": f"Bearer {credential}"}

        def detect(credential: str) -> httpx.Response:
            return http.post("/v1/detect", content=picture, headers=bearer(credential))

        account = {
            "email": "ann@self-service.example",
            "password": "correct horse battery staple",
            "organization": "self-service",
        }
        registered = http.post("/api/v1/register", json=account)
        assert registered.status_code == 201, registered.text
        first = _key_in(registered.json())

        found = detect(first["key"])
        assert found.status_code == 200, found.text
        assert found.json()["detections"]

        client = http.post(
            "/api/v1/tenants/me/oauth-clients",
            json={"name": "line 3", "scopes": ["detect"]},
            headers=bearer(first["key"]),
        )
        assert client.status_code == 201, client.text
        token = http.post(
            "/oauth2/token",
            data={"grant_type": "client_credentials", "scope": "detect"},
            auth=(client.json()["client_id"], client.json()["client_secret"]),
        )
        assert token.status_code == 200, token.text
        with_token = detect(token.json()["access_token"])
        assert with_token.status_code == 200
        assert with_token.json()["detections"] == found.json()["detections"]

        rotated = http.post(
            f"/api/v1/tenants/me/keys/{first['id']}/rotate",
            json={"overlap": "1h"},
            headers=bearer(first["key"]),
        )
        assert rotated.status_code == 201, rotated.text
        new = rotated.json()["key"]
        assert detect(first["key"]).status_code == 200  # both live while callers change over
        assert detect(new).status_code == 200

        revoked = http.delete(f"/api/v1/tenants/me/keys/{first['id']}", headers=bearer(new))
        assert revoked.status_code == 204
        started = time.monotonic()
        eventually(lambda: detect(first["key"]).status_code == 401, within=1, what="401")
        assert time.monotonic() - started < 1
        assert detect(new).status_code == 200

        path = f"/api/v1/tenants/me/oauth-clients/{client.json()['id']}"
        assert http.delete(path, headers=bearer(new)).status_code == 204
        access = token.json()["access_token"]
        eventually(lambda: detect(access).status_code == 401, within=1, what="401")
        assert 'error="invalid_token"' in detect(access).headers["www-authenticate"]


def test_the_revoked_key_is_unknown_and_the_last_use_of_the_other_known(platform, board):
    """A gateway tells of uses in batches: within seconds the list says when."""
    _, client = platform.tenant("last-use")
    with client:
        client.detect(board)
        (key,) = eventually(
            lambda: [k for k in client.list_keys() if k.last_used_at], within=5, what="last use"
        )
        assert key.last_used_at is not None
        assert abs(key.last_used_at - time.time()) < 120


def _key_in(registered: dict) -> dict:
    key = registered["api_key"] if "api_key" in registered else registered["tenant"]["api_key"]
    assert isinstance(key, dict)
    return key
