"""API keys at the control plane: two alive while they rotate, where from, when last used."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from polyolo.types import Snapshot, UsageRecord
from polyolo.web import decode_json
from tests.integration.control_plane import GATEWAY, Api, serving, settings


@pytest.fixture
async def api(tmp_path, database):
    async with serving(settings(tmp_path / "home")) as served:
        yield served


async def live(api: Api) -> dict[str, Any]:
    """Return the keys that gateways know of, by id."""
    answer = await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)
    return {key.id: key for key in decode_json(answer.content, Snapshot).keys}


async def rotated(api: Api, owner: str, identifier: str, **body: Any) -> dict[str, Any]:
    answer = await api.ask("POST", f"/tenants/me/keys/{identifier}/rotate", owner, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_two_keys_live_while_a_key_rotates(api):
    """With an overlap the old key goes on for that long; the one before it stops at once."""
    _, owner = await api.tenant("acme")
    first = (await api.ask("POST", "/tenants/me/keys", owner, json={"name": "ci"})).json()
    second = await rotated(api, owner, first["id"], overlap="1h")
    keys = await live(api)
    assert keys[first["id"]].expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert keys[second["id"]].expires_at is None
    for one in (first, second):
        assert (await api.ask("GET", "/tenants/me", one["key"])).status_code == 200
    listed = (await api.ask("GET", "/tenants/me/keys", owner)).json()["keys"]
    assert next(k for k in listed if k["id"] == first["id"])["replaced_by"] == second["id"]
    again = await api.ask("POST", f"/tenants/me/keys/{first['id']}/rotate", owner)
    assert again.status_code == 409
    third = await rotated(api, owner, second["id"], overlap=60)
    assert {first["id"], second["id"], third["id"]} & set(await live(api)) == {
        second["id"],
        third["id"],
    }
    assert (await api.ask("GET", "/tenants/me", first["key"])).status_code == 401


async def test_without_an_overlap_the_old_key_stops_at_once(api):
    """The default, with a body or without; an overlap never makes a key live longer."""
    _, owner = await api.tenant("acme")
    first = (await api.ask("POST", "/tenants/me/keys", owner, json={"expires_in": "30m"})).json()
    second = await rotated(api, owner, first["id"], overlap="1h")
    assert (await live(api))[first["id"]].expires_at == first["expires_at"]
    answer = await api.ask("POST", f"/tenants/me/keys/{second['id']}/rotate", owner)
    assert answer.status_code == 201
    assert not {first["id"], second["id"]} & set(await live(api))
    bad = await api.ask(
        "POST", f"/tenants/me/keys/{answer.json()['id']}/rotate", owner, json={"overlap": "soon"}
    )
    assert bad.status_code == 422
    assert "overlap" in bad.json()["detail"]


async def test_a_key_bound_to_networks(api):
    """Normalised, told to gateways, kept by rotation, and held by the control API itself."""
    _, owner = await api.tenant("acme")
    body = {"sources": ["10.1.2.3", "203.0.113.7/24", "2001:db8::/32"]}
    made = (await api.ask("POST", "/tenants/me/keys", owner, json=body)).json()
    assert made["sources"] == ["10.1.2.3/32", "203.0.113.0/24", "2001:db8::/32"]
    new = await rotated(api, owner, made["id"])
    assert list((await live(api))[new["id"]].sources) == made["sources"] == new["sources"]
    for source, status in (("203.0.113.9", 200), ("203.0.114.9", 403), ("2001:db8::1", 200)):
        headers = {
            "authorization": f"Bearer {new['key']}",
            "polyolo-client-address": source,  # the gateway's word: clients cannot send it
        }
        answer = await api.http.get("/api/v1/tenants/me", headers=headers)
        assert answer.status_code == status
    assert (await api.ask("GET", "/tenants/me", new["key"])).status_code == 403
    for sources in (["10.0.0.0/33"], ["nonsense"], ["10.0.0.0/8"] * 51):
        answer = await api.ask("POST", "/tenants/me/keys", owner, json={"sources": sources})
        assert answer.status_code == 422
        assert "sources" in answer.json()["detail"]


async def test_last_use_is_learned_from_usage_to_a_minute(api):
    """No write a request: a batch of usage tells; it never goes back, and makes no new snapshot."""
    api.control.plane.ledger.clock = lambda: 5_500_000.0  # before what is told of
    tenant, owner = await api.tenant("acme")
    identifier = owner.split("_")[1]
    await api.ready(tenant)  # the reconciler has nothing more to note
    client = (await api.ask("POST", "/tenants/me/oauth-clients", owner, json={})).json()
    revision = api.control.plane.ledger.revision()

    async def report(at: float, principal: str) -> None:
        record = UsageRecord(
            id=f"r{at}{principal}", tenant=tenant, at=at, status=200, principal=principal
        )
        content = msgspec.json.encode([record])
        answer = await api.http.post("/internal/v1/usage", headers=GATEWAY, content=content)
        assert answer.status_code == 200

    await report(6_000_059.0, f"key:{identifier}")
    await report(6_000_001.0, f"token:{client['id']}")
    await report(5_000_000.0, f"key:{identifier}")
    await report(6_000_000.0, "key:nobody")
    await report(6_000_000.0, "")
    (key,) = (await api.ask("GET", "/tenants/me/keys", owner)).json()["keys"]
    assert key["last_used_at"] == 6_000_000.0 // 60 * 60
    (known,) = (await api.ask("GET", "/tenants/me/oauth-clients", owner)).json()["clients"]
    assert known["last_used_at"] == 6_000_000.0
    assert api.control.plane.ledger.revision() == revision


async def test_calls_of_the_control_api_are_uses_too(api):
    """Of keys, of clients that get a token, of their tokens; one write a minute, no revision."""
    tenant, owner = await api.tenant("acme")
    await api.ready(tenant)
    client = (await api.ask("POST", "/tenants/me/oauth-clients", owner, json={})).json()
    ledger = api.control.plane.ledger
    revision, writes = ledger.revision(), []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE") and "last_used_at" in statement and cursor.rowcount > 0:
            writes.append(statement)

    now = ledger.clock() // 60 * 60 + 600
    ledger.clock = lambda: now
    sa.event.listen(ledger._engine, "after_cursor_execute", executed)
    try:
        for _ in range(5):
            assert (await api.ask("GET", "/tenants/me/models", owner)).status_code == 200
            await api.ask("GET", "/tenants/me/nothing", owner)
        assert len(writes) == 1
        form = {"grant_type": "client_credentials"}
        secret = (client["client_id"], client["client_secret"])
        token = (await api.http.post("/oauth2/token", data=form, auth=secret)).json()
        assert len(writes) == 2
        now += 60
        await api.ask("GET", "/tenants/me/models", token["access_token"])
        assert len(writes) == 3
    finally:
        sa.event.remove(ledger._engine, "after_cursor_execute", executed)
    (key,) = (await api.ask("GET", "/tenants/me/keys", owner)).json()["keys"]
    assert key["last_used_at"] == now - 60
    (known,) = (await api.ask("GET", "/tenants/me/oauth-clients", owner)).json()["clients"]
    assert known["last_used_at"] == now
    assert ledger.revision() == revision
