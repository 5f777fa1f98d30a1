"""A second live secret of an OAuth client: both are good for a while, then the new one alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.control_plane import Api, serving, settings
from tests.integration.test_oauth import GRANT, client_of, form, token_of


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def rotate(api: Api, client: str, key: str, **body: Any) -> Any:
    return await api.ask("POST", f"/tenants/me/oauth-clients/{client}/rotate", key, json=body)


async def good(api: Api, *clients: dict[str, Any]) -> list[bool]:
    """Say which of the secrets get a token."""
    return [
        (await form(api, "/oauth2/token", client, **GRANT)).status_code == 200 for client in clients
    ]


async def test_without_an_overlap_the_old_secret_stops_and_its_tokens_go_on(api: Api):
    """The answer holds the new secret, the list none; a token is not the secret's."""
    _, key = await api.tenant("acme")
    made = await client_of(api, "me", key, name="ci", scopes=["detect", "models:read"])
    token = await token_of(api, made)
    answer = await rotate(api, made["id"], key)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    new = answer.json()
    kept = ("id", "name", "scopes", "created_at", "client_id")
    assert [new[field] for field in kept] == [made[field] for field in kept]
    assert new["previous_until"] is None
    assert await good(api, made, new) == [False, True]
    assert (await api.ask("GET", "/tenants/me/models", token)).status_code == 200
    listed = (await api.ask("GET", "/tenants/me/oauth-clients", key)).json()["clients"]
    assert [one["client_secret"] for one in listed] == [None]


async def test_with_an_overlap_both_are_good_until_it_is_over(api: Api):
    """At most two: the one before those two stops at once."""
    _, key = await api.tenant("acme")
    ledger = api.control.plane.ledger
    now = ledger.clock()
    ledger.clock = lambda: now
    first = await client_of(api, "me", key)
    second = (await rotate(api, first["id"], key, overlap="1h")).json()
    assert second["previous_until"] == now + 3600
    assert await good(api, first, second) == [True, True]
    third = (await rotate(api, first["id"], key, overlap=60)).json()
    assert await good(api, first, second, third) == [False, True, True]
    ledger.clock = lambda: now + 59.9
    assert await good(api, second, third) == [True, True]
    ledger.clock = lambda: now + 60
    assert await good(api, second, third) == [False, True]
    ledger.clock = lambda: now
    await api.ask("DELETE", f"/tenants/me/oauth-clients/{first['id']}", key)
    assert await good(api, second, third) == [False, False]
    assert (await rotate(api, first["id"], key)).status_code == 404


async def test_nobody_gets_the_secret_of_a_client_that_may_do_more(api: Api):
    """403 for a key with fewer scopes, 404 for another tenant's, 422 for an odd overlap."""
    _, key = await api.tenant("acme")
    _, foreign = await api.tenant("other")
    made = await client_of(api, "me", key, scopes=["detect", "models:write"])
    weak = (
        await api.ask("POST", "/tenants/me/keys", key, json={"scopes": ["keys:write", "detect"]})
    ).json()["key"]
    refused = await rotate(api, made["id"], weak)
    assert refused.status_code == 403
    assert "models:write" in refused.json()["detail"]
    assert (await rotate(api, made["id"], foreign)).status_code == 404
    for overlap in ("soon", -1, "11000d"):
        assert (await rotate(api, made["id"], key, overlap=overlap)).status_code == 422
    assert await good(api, made) == [True]


@pytest.mark.parametrize("overlap", [None, "1h"])
async def test_a_rotation_is_in_the_audit_log(api: Api, overlap):
    """Who gave which client a new secret, and how long the old one is good; no secret."""
    _, key = await api.tenant("acme")
    made = await client_of(api, "me", key)
    new = (await rotate(api, made["id"], key, overlap=overlap)).json()
    answer = await api.ask("GET", "/tenants/me/audit", key)
    (entry,) = [one for one in answer.json()["entries"] if one["action"] == "oauth-client.rotate"]
    assert entry["resource"] == f"oauth-clients/{made['id']}"
    assert ("3600" in entry["detail"]) == (overlap is not None)
    assert new["client_secret"] not in answer.text
