"""Idempotency-Key over a real socket: asked twice, done once, and no secret kept in clear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.idempotency import OnceRoute
from polyolo.control.service import replays
from tests.integration.control_plane import Api, serving, settings
from tests.integration.people import PASSWORD, post, register, sign_in

ONCE = {"idempotency-key": "order-1"}


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def once(api: Api, path: str, key: str | None, again: str = "order-1", **more):
    headers = {"authorization": f"Bearer {key or api.control.operator_key}"}
    headers["idempotency-key"] = again
    return await api.http.post(f"/api/v1{path}", headers=headers, **more)


async def keys_of(api: Api, key: str) -> int:
    return len((await api.ask("GET", "/tenants/me/keys", key)).json()["keys"])


async def test_asked_twice_done_once(api: Api):
    """The same answer, secret included, and marked; another key, another tenant: another effect."""
    _, mine = await api.tenant("acme")
    _, theirs = await api.tenant("other")
    first = await once(api, "/tenants/me/keys", mine, json={"name": "ci"})
    again = await once(api, "/tenants/me/keys", mine, json={"name": "ci"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert await keys_of(api, mine) == 2
    foreign = await once(api, "/tenants/me/keys", theirs, json={"name": "ci"})
    assert foreign.json()["id"] != first.json()["id"]
    fresh = await once(api, "/tenants/me/keys", mine, "order-2", json={"name": "ci"})
    assert fresh.json()["id"] != first.json()["id"]
    assert await keys_of(api, mine) == 3


async def test_another_request_under_the_same_key(api: Api):
    """422: another body, another query, another path."""
    _, mine = await api.tenant("acme")
    await once(api, "/tenants/me/keys", mine, json={"name": "ci"})
    for path, body in (
        ("/tenants/me/keys", {"name": "else"}),
        ("/tenants/me/keys?x=1", {"name": "ci"}),
        ("/tenants/me/keys/abc/rotate", {"name": "ci"}),
    ):
        answer = await once(api, path, mine, json=body)
        assert (answer.status_code, "new key" in answer.json()["detail"]) == (422, True)
    assert await keys_of(api, mine) == 2


async def test_many_at_once_have_one_effect(api: Api):
    """Ten concurrent duplicates: one key is made; the others get it too, or 409."""
    _, mine = await api.tenant("acme")
    asked = [once(api, "/tenants/me/keys", mine, json={}) for _ in range(10)]
    answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({a.json()["id"] for a in answers if a.status_code == 201}) == 1
    assert await keys_of(api, mine) == 2


async def test_what_was_refused_may_be_corrected(api: Api):
    """A refusal is not kept: the same key then does the work."""
    _, mine = await api.tenant("acme")
    for body, status in (({"scopes": ["x"]}, 422), ({"name": 7}, 422), ({}, 201)):
        assert (await once(api, "/tenants/me/keys", mine, json=body)).status_code == status
    assert (await once(api, "/tenants/me/keys", "pk_nobody", json={})).status_code == 401
    long = "x" * 256
    assert (await once(api, "/tenants/me/keys", mine, long, json={})).status_code == 422


async def test_a_revoked_key_is_told_nothing_again(api: Api):
    """401: the credential is looked at before what was answered; so for a suspended tenant."""
    tenant, mine = await api.tenant("acme")
    first = (await once(api, "/tenants/me/keys", mine, json={})).json()
    await api.ask("PATCH", f"/tenants/{tenant}", json={"state": "suspended"})
    assert (await once(api, "/tenants/me/keys", mine, json={})).status_code == 403
    await api.ask("PATCH", f"/tenants/{tenant}", json={"state": "active"})
    assert (await once(api, "/tenants/me/keys", mine, json={})).json() == first
    identifier = mine.split("_")[1]
    await api.ask("DELETE", f"/tenants/{tenant}/keys/{identifier}")
    assert (await once(api, "/tenants/me/keys", mine, json={})).status_code == 401


async def test_no_secret_is_kept_in_clear(api: Api):
    """Neither the key, nor what opens it, is in the rows; nor is a password or its quick digest."""
    _, mine = await api.tenant("acme")
    made = (await once(api, "/tenants/me/keys", mine, json={"name": "canary-name"})).json()
    body = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"}
    assert (await post(api, "/register", body, idempotency_key="r1")).status_code == 201
    with api.control.plane.ledger.reading() as connection:
        rows = connection.execute(sa.select(db.replays)).all()
    for secret in (made["key"], mine, "order-1", "canary-name", PASSWORD, "ann@"):
        assert secret not in str(rows)
    assert [row.status for row in rows] == [201, 201]


async def test_registered_twice_registered_once(api: Api):
    """The same answer without the key, which was shown; and no second tenant."""
    body = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"}
    first = (await post(api, "/register", body, idempotency_key="r1")).json()
    again = await post(api, "/register", body, idempotency_key="r1")
    assert again.status_code == 201
    assert again.json()["tenant"] == first["tenant"]
    assert (first["api_key"]["key"] is None, again.json()["api_key"]["key"]) == (False, None)
    other = body | {"email": "bob@example.com"}
    assert (await post(api, "/register", other, idempotency_key="r1")).status_code == 422
    broken = await api.http.post(
        "/api/v1/register", content=b"{", headers={"idempotency-key": "r1"}
    )
    assert broken.status_code == 422
    assert len((await api.ask("GET", "/tenants")).json()["tenants"]) == 1


async def test_an_upload_is_one_version(api: Api):
    """The file's bytes are what is asked: the same ones are one version, others are 422."""
    _, mine = await api.tenant("acme")
    path = "/tenants/me/models/city/versions"
    first = await once(api, path, mine, content=b"model one")
    again = await once(api, path, mine, content=b"model one")
    assert (first.status_code, again.status_code) == (201, 201), first.text
    assert first.json() == again.json()
    assert (await once(api, path, mine, content=b"model two")).status_code == 422
    shown = (await api.ask("GET", "/tenants/me/models/city", mine)).json()
    assert len(shown["versions"]) == 1


async def test_a_request_without_a_body_too(api: Api):
    """Rotated twice with one key: one new key."""
    tenant, _ = await api.tenant("acme")
    made = (await api.ask("POST", f"/tenants/{tenant}/keys", json={})).json()
    path = f"/tenants/{tenant}/keys/{made['id']}/rotate"
    first, again = await once(api, path, None), await once(api, path, None)
    assert (first.status_code, again.json()) == (201, first.json())


async def test_a_first_request_without_an_outcome_is_not_repeated(api: Api):
    """409 when the platform was killed in between; after a day the key is free again."""
    _, mine = await api.tenant("acme")
    await once(api, "/tenants/me/keys", mine, json={})
    ledger = api.control.plane.ledger
    with ledger.changing() as transaction:
        transaction.connection.execute(db.replays.update().values(status=0, request=""))
    answer = await once(api, "/tenants/me/keys", mine, json={})
    assert (answer.status_code, await keys_of(api, mine)) == (409, 2)
    now = ledger.clock()
    ledger.clock = lambda: now + replays.KEPT_S + 1
    assert (await once(api, "/tenants/me/keys", mine, json={})).status_code == 201


async def test_every_post_of_the_api_takes_a_key(api: Api):
    """No resource is left out; an OAuth client's secret is told again to who asked for it."""
    posts = [route for route in _routes(api.control.app) if route.methods == {"POST"}]
    inside = [route for route in posts if not route.path.startswith(("/oauth2", "/internal"))]
    assert len(inside) >= 10
    assert {type(route) for route in inside} == {OnceRoute}
    _, mine = await api.tenant("acme")
    first = await once(api, "/tenants/me/oauth-clients", mine, json={"name": "ci"})
    again = await once(api, "/tenants/me/oauth-clients", mine, json={"name": "ci"})
    assert (first.status_code, again.json()) == (201, first.json())
    assert first.json()["client_secret"]


def _routes(app: Any) -> Iterator[Any]:
    while not hasattr(app, "routes"):
        app = app._app
    for route in [*app.routes, *app.default.routes]:
        included = getattr(route, "original_router", None)
        yield from included.routes if included else [route]


async def test_a_session_is_never_kept(api: Api):
    """Signing in twice with one key gives two sessions: no cookie is told twice."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com", **ONCE)
    other = await sign_in(api, "ann@example.com", **ONCE)
    assert ann.cookie != other.cookie


@pytest.mark.parametrize("demoted", ["viewer", "billing"])
async def test_whoever_may_do_less_now_is_not_told(api: Api, demoted: str):
    """A user's new role makes them another asker: 403, not the old answer."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    first = await ann.ask("POST", "/tenants/me/keys", json={}, headers=ONCE)
    assert first.status_code == 201
    tenant = ann.tenant
    invited = await ann.ask("POST", "/tenants/me/invitations", json={"role": "owner"})
    body = {"token": invited.json()["token"], "email": "b@example.com", "password": PASSWORD}
    await post(api, "/invitations/accept", body)
    changed = await api.ask("PATCH", f"/tenants/{tenant}/users/{ann.user}", json={"role": demoted})
    assert changed.status_code == 200
    again = await ann.ask("POST", "/tenants/me/keys", json={}, headers=ONCE)
    assert again.status_code == 403
