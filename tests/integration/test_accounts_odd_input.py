"""Values that a database would choke on: told to the client, on both databases, never a 5xx."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.integration.control_plane import Api, serving, settings
from tests.integration.people import PASSWORD, post

ODD = ["%00", "a%00b", "%F0%9F%8C%B0", "%FF", "x" * 5000, "%ED%A0%80", "'; DROP TABLE users; --"]
HUGE = [2**31, 2**63, 10**40, -1]


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def test_odd_names_in_paths(api: Api):
    """4xx wherever an identifier stands."""
    _, key = await api.tenant("acme")
    paths = [
        ("GET", "/tenants/{}"),
        ("DELETE", "/tenants/me/keys/{}"),
        ("POST", "/tenants/me/keys/{}/rotate"),
        ("GET", "/tenants/me/models/{}"),
        ("DELETE", "/tenants/me/models/{}"),
        ("POST", "/tenants/me/models/{}/rollback"),
        ("DELETE", "/tenants/me/oauth-clients/{}"),
    ]
    own = [("DELETE", "/tenants/acme/users/{}"), ("DELETE", "/tenants/acme/invitations/{}")]
    for odd in ODD:
        for method, path in paths:
            answer = await api.ask(method, path.format(odd), key)
            assert 400 <= answer.status_code < 500, (method, path, odd, answer.text)
        for method, path in own:
            answer = await api.ask(method, path.format(odd))
            assert 400 <= answer.status_code < 500, (method, path, odd, answer.text)


async def test_odd_values_in_bodies(api: Api):
    """Zero bytes, lone surrogates and numbers beyond every column are refused or kept whole."""
    _, key = await api.tenant("acme")
    for odd in ("a\x00b", "\ud800", "🌰", "x" * 101):
        for path, body in (
            ("/tenants/me/keys", {"name": odd}),
            ("/tenants/me/oauth-clients", {"name": odd}),
        ):
            content = json.dumps(body)
            answer = await api.http.post(
                f"/api/v1{path}",
                content=content,
                headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            )
            assert answer.status_code < 500, (path, odd, answer.text)
        body = {"email": "ann@example.com", "password": PASSWORD, "organization": odd * 2}
        if odd != "\ud800":
            assert (await post(api, "/register", body)).status_code < 500
            body = {"email": f"{odd}@example.com", "password": odd}
            assert (await post(api, "/sessions", body)).status_code in (401, 422)
    for huge in HUGE:
        answer = await api.ask("POST", "/tenants/me/models/city/use", key, json={"version": huge})
        assert 400 <= answer.status_code < 500, (huge, answer.text)
        answer = await api.ask("GET", f"/tenants/me/models/standard/versions/{huge}", key)
        assert 400 <= answer.status_code < 500, (huge, answer.text)
        for field in ("since", "until"):
            answer = await api.ask("GET", f"/tenants/me/usage?{field}={huge}", key)
            assert answer.status_code < 500, (huge, answer.text)
        answer = await api.ask("POST", "/tenants/me/keys", key, json={"expires_in": huge})
        assert answer.status_code < 500, (huge, answer.text)
