"""The life of an identity at an external provider, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
import sqlalchemy as sa

from polyolo.control import db
from tests.integration.control_plane import serving, settings, until
from tests.integration.people import PASSWORD, post, register, sign_in
from tests.integration.provider import ANN, Stage, providing


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with providing() as provider:
        chosen = settings(tmp_path / "home", provider=provider.settings())
        async with serving(chosen) as api:
            yield Stage(api, provider)


async def test_somebody_registers_with_an_identity_and_signs_in_with_it(stage: Stage):
    """Tenant and owner in one go, no password, no first key; then the identity alone suffices."""
    ann = stage.browser()
    made = await ann.sign_in(organization="Acme Inc.", next="/console")
    assert (made.status_code, made.headers["location"]) == (303, "/console")
    assert made.headers["cache-control"] == "no-store"
    shown = (await ann.ask("GET", "/api/v1/sessions/current")).json()
    assert (shown["user"]["email"], shown["user"]["role"]) == (ANN["email"], "owner")
    keys = (await ann.ask("GET", "/api/v1/tenants/me/keys")).json()["keys"]
    assert keys == []
    assert (await ann.act("POST", "/tenants/me/keys", json={})).status_code == 201

    again = stage.browser()
    answer = await again.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/api/v1/sessions/current")
    seen = (await again.ask("GET", "/api/v1/sessions/current")).json()
    assert seen["user"]["id"] == shown["user"]["id"]
    for password in ("", PASSWORD):
        body = {"email": ANN["email"], "password": password}
        assert (await post(stage.api, "/sessions", body)).status_code == 401
    begun = stage.audited("session.begin")
    assert [row.detail for row in begun] == [f"by {stage.provider.url}"] * 2
    calls = [row for row in stage.audited("sign-in") if "callback" in row.resource]
    assert {(row.actor, row.status) for row in calls} == {(f"user:{shown['user']['id']}", 303)}


async def test_a_user_links_and_unlinks_while_signed_in(stage: Stage):
    """With the password: the identity signs in from then on, until it is taken away."""
    await register(stage.api, ANN["email"])
    ann = stage.browser()
    ann.cookies["polyolo_session"] = (await sign_in(stage.api, ANN["email"])).cookie.split("=")[1]
    path = "/sessions/current/identities"
    wrong = await ann.act("POST", path, json={"password": "wrong"})
    assert wrong.status_code == 401
    begun = await ann.act("POST", path, json={"password": PASSWORD, "next": "/console"})
    assert begun.status_code == 200, begun.text
    session = ann.cookies["polyolo_session"]
    answer = await ann.back(await ann.visit(begun.json()["url"]))
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    assert ann.cookies["polyolo_session"] == session
    (identity,) = (await ann.ask("GET", f"/api/v1{path}")).json()["identities"]
    assert (identity["issuer"], identity["subject"]) == (stage.provider.url, ANN["sub"])

    assert (await stage.browser().sign_in()).status_code == 303
    await sign_in(stage.api, ANN["email"])  # the password goes on working
    gone = await ann.act("DELETE", f"{path}/{identity['id']}")
    assert gone.status_code == 204
    assert (await stage.browser().sign_in()).status_code == 403
    assert [len(stage.audited(f"identity.{what}")) for what in ("link", "unlink")] == [1, 1]


async def test_an_invitation_is_accepted_with_an_identity(stage: Stage):
    """Into the tenant and role that it is for, once; an identity that has a user has it already."""
    await register(stage.api, "owner@example.com")
    owner = await sign_in(stage.api, "owner@example.com")
    body = {"role": "developer"}
    tokens = [
        (await owner.ask("POST", "/tenants/me/invitations", json=body)).json()["token"]
        for _ in range(2)
    ]
    bob = stage.browser()
    stage.provider.person = ANN | {"sub": "bob", "email": "bob@example.com"}
    assert (await bob.sign_in(invitation=tokens[0])).status_code == 303
    shown = (await bob.ask("GET", "/api/v1/sessions/current")).json()
    assert (shown["tenant"], shown["user"]["role"]) == (owner.tenant, "developer")
    used = await stage.browser().ask("POST", "/api/v1/sign-in/oidc", json={"invitation": tokens[0]})
    assert used.status_code == 403
    stage.provider.person["email"] = "bob@new-name.example"
    assert (await stage.browser().sign_in(invitation=tokens[1])).status_code == 409
    await owner.ask("DELETE", f"/tenants/me/users/{shown['user']['id']}")
    assert (await bob.ask("GET", "/api/v1/sessions/current")).status_code == 401
    assert (await stage.browser().sign_in()).status_code == 403


async def test_a_tenants_end_takes_identities_along(stage: Stage):
    """The identity is free afterwards, and nothing of the person is in the database in clear."""
    ann = stage.browser()
    await ann.sign_in(organization="Acme")
    shown = (await ann.ask("GET", "/api/v1/sessions/current")).json()
    with stage.api.control.plane.ledger.reading() as connection:
        row = connection.execute(sa.select(db.identities)).one()
    assert ANN["sub"] not in str(row)
    await stage.api.ready(shown["tenant"])
    assert (await stage.api.ask("DELETE", f"/tenants/{shown['tenant']}")).status_code < 300
    assert (await stage.browser().sign_in()).status_code == 403

    async def gone() -> bool:
        with stage.api.control.plane.ledger.reading() as connection:
            return connection.execute(sa.select(db.identities)).first() is None

    await until(gone)
    assert (await stage.browser().sign_in(organization="Acme")).status_code == 303
