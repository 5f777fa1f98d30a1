"""Sign-in through an external provider: who becomes which user, and who does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.idtoken import IdentityClaims
from polyolo.control.service import identities
from polyolo.control.settings import Registration
from polyolo.errors import ForbiddenError
from tests.integration.control_plane import serving, settings
from tests.integration.people import PASSWORD, join, post, register, sign_in
from tests.integration.provider import ANN, Stage, providing

BOB = {"sub": "bob-at-provider", "email": "bob@example.com", "email_verified": True}


@pytest_asyncio.fixture
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Run both. Parameters: changes of the provider's settings and of control's."""
    changes, more = getattr(request, "param", ({}, {}))
    async with providing() as provider:
        chosen = settings(tmp_path / "home", provider=provider.settings(**changes), **more)
        async with serving(chosen) as api:
            yield Stage(api, provider)


async def test_an_unknown_identity_is_told_what_to_do(stage: Stage):
    """403, no account and no session; the reason is in the audit log."""
    browser = stage.browser()
    answer = await browser.sign_in()
    assert answer.status_code == 403
    assert "register" in answer.json()["detail"]
    assert browser.cookies == {}
    refused = stage.audited("sign-in")[-1]
    assert (refused.status, refused.actor) == (403, "nobody")
    assert "nobody here is known" in refused.detail


async def test_the_subject_decides_and_never_the_address(stage: Stage):
    """Whoever has the address of a user, verified or not, is not that user."""
    await register(stage.api, ANN["email"])
    for verified in (True, False):
        stage.provider.person = {"sub": "mallory", "email": ANN["email"]}
        stage.provider.person["email_verified"] = verified
        assert (await stage.browser().sign_in()).status_code == 403
        taken = await stage.browser().sign_in(organization="Mallory")
        assert taken.status_code == 409
    stage.provider.person = dict(ANN)
    await stage.browser().sign_in(organization="Other")
    with stage.api.control.plane.ledger.reading() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(db.tenants)).scalar_one()
        assert connection.execute(sa.select(db.identities)).all() == []
    assert count == 1


async def test_the_address_may_change_and_another_issuer_is_another_person(stage: Stage):
    """The same subject with another address is the same user; of another issuer, a stranger."""
    await stage.browser().sign_in(organization="Acme")
    stage.provider.person["email"] = "ann@new-name.example"
    assert (await stage.browser().sign_in()).status_code == 303
    plane = stage.api.control.plane
    for issuer, subject in (("https://other.example", ANN["sub"]), (stage.provider.url, "bob")):
        claims = IdentityClaims(issuer=issuer, subject=subject, email=ANN["email"])
        with pytest.raises(ForbiddenError):
            identities.sign_in(plane.ledger, plane.vault, stage.provider.settings(), claims)


async def test_the_only_way_to_sign_in_stays_and_another_users_identity_is_not_there(stage: Stage):
    """409 for the last one of somebody without a password; 404 for a foreign one."""
    ann, bob = stage.browser(), stage.browser()
    await ann.sign_in(organization="Acme")
    stage.provider.person = dict(BOB)
    await bob.sign_in(organization="Other")
    path = "/sessions/current/identities"
    (own,) = (await ann.ask("GET", f"/api/v1{path}")).json()["identities"]
    assert (await ann.act("DELETE", f"{path}/{own['id']}")).status_code == 409
    assert (await bob.act("DELETE", f"{path}/{own['id']}")).status_code == 404
    taken = await ann.act("POST", path, json={})
    answer = await ann.back(await ann.visit(taken.json()["url"]))
    assert answer.status_code == 409, "an identity has one user"
    changed = await ann.act("PUT", "/sessions/current/password", json={"old": "", "new": PASSWORD})
    assert changed.status_code == 409


async def test_an_address_comes_from_userinfo_too(stage: Stage):
    """Providers may tell it there only; of another subject it is not believed."""
    stage.provider.claims = {"email": None, "email_verified": None}
    refused = await stage.browser().sign_in(organization="Acme")
    assert refused.status_code == 403
    assert "e-mail" in refused.json()["detail"]
    stage.provider.userinfo = {"sub": "another", "email": ANN["email"]}
    assert (await stage.browser().sign_in(organization="Acme")).status_code == 403
    stage.provider.userinfo = {"sub": ANN["sub"], "email": " Ann@Example.com "}
    ann = stage.browser()
    assert (await ann.sign_in(organization="Acme")).status_code == 303
    shown = (await ann.ask("GET", "/api/v1/sessions/current")).json()
    assert shown["user"]["email"] == ANN["email"]


@pytest.mark.parametrize("stage", [({"link_by_email": True}, {})], indirect=True)
async def test_where_the_operator_wants_it_a_verified_address_finds_the_user(stage: Stage):
    """Only a verified one; then the password, other identities and sessions end with it."""
    await register(stage.api, ANN["email"])
    before = await sign_in(stage.api, ANN["email"])
    for verified in (False, None, 1, "yes"):
        stage.provider.person["email_verified"] = verified
        assert (await stage.browser().sign_in()).status_code == 403
    stage.provider.person["email_verified"] = True
    ann = stage.browser()
    assert (await ann.sign_in()).status_code == 303
    shown = (await ann.ask("GET", "/api/v1/sessions/current")).json()
    assert shown["user"]["id"] == before.user
    assert (await before.ask("GET", "/sessions/current")).status_code == 401
    body = {"email": ANN["email"], "password": PASSWORD}
    assert (await post(stage.api, "/sessions", body)).status_code == 401


@pytest.mark.parametrize("stage", [({"domains": ("Example.com",)}, {})], indirect=True)
async def test_only_verified_addresses_of_the_operators_domains_come_in(stage: Stage):
    """Every time, not only the first one."""
    for email, verified, status in (
        ("ann@example.com", False, 403),
        ("ann@example.com.evil.example", True, 403),
        ("ann@evil-example.com", True, 403),
        ("ann@EXAMPLE.com", True, 303),
    ):
        stage.provider.person = ANN | {"email": email, "email_verified": verified}
        answer = await stage.browser().sign_in(organization="Acme")
        assert answer.status_code == status, email
    stage.provider.person["email"] = "ann@elsewhere.example"
    assert (await stage.browser().sign_in()).status_code == 403


@pytest.mark.parametrize("stage", [({}, {"registration": Registration.INVITE})], indirect=True)
async def test_the_rule_of_registration_holds_here_too(stage: Stage):
    """By invitation of the operator only, used up by it."""
    closed = await stage.browser().ask("POST", "/api/v1/sign-in/oidc", json={"organization": "A"})
    assert closed.status_code == 403
    token = (await stage.api.ask("POST", "/invitations", json={})).json()["token"]
    first, second = stage.browser(), stage.browser()
    urls = [await one.start(organization="A", invitation=token) for one in (first, second)]
    assert (await first.back(await first.visit(urls[0]))).status_code == 303
    stage.provider.person = dict(BOB)
    assert (await second.back(await second.visit(urls[1]))).status_code == 403


async def test_registration_that_was_closed_meanwhile_is_closed(tmp_path: Path):
    """Who began while it was open, and comes back when it is not, makes no tenant."""
    async with providing() as provider:
        chosen = settings(tmp_path / "home", provider=provider.settings())
        async with serving(chosen) as api:
            browser = Stage(api, provider).browser()
            back = await browser.visit(await browser.start(organization="Acme"))
        async with serving(replace(chosen, registration=Registration.CLOSED)) as api:
            browser.api = api
            assert (await browser.back(back)).status_code == 403


async def test_people_of_both_kinds_live_in_one_tenant(stage: Stage):
    """An owner with an identity invites somebody with a password."""
    ann = stage.browser()
    await ann.sign_in(organization="Acme")
    owner = type("Owner", (), {"ask": staticmethod(ann.act)})
    bob = await join(stage.api, owner, "bob@example.com", "viewer")
    assert (await bob.ask("GET", "/tenants/me/users")).status_code == 403
    users = (await ann.ask("GET", "/api/v1/tenants/me/users")).json()["users"]
    assert [user["email"] for user in users] == ["ann@example.com", "bob@example.com"]
