"""Accounts over a real socket: registration, invitations, roles, and what is kept of people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from polyolo.control.settings import Registration
from tests.integration.control_plane import Api, serving, settings
from tests.integration.people import PASSWORD, Person, join, post, register, sign_in


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def test_from_nothing_to_a_key_in_one_call(api: Api):
    """201 with user, tenant and a key that works at once; the runtime comes up by itself."""
    made = await register(api, "Ann@Example.com", "Müller & Söhne GmbH")
    assert made["user"]["email"] == "ann@example.com"
    assert made["user"]["role"] == "owner"
    assert made["tenant"]["name"].startswith("muller-sohne-gmbh-")
    assert (made["tenant"]["plan"], made["tenant"]["state"]) == ("default", "active")
    key = made["api_key"]["key"]
    shown = await api.ask("GET", "/tenants/me", key)
    assert shown.json()["id"] == made["tenant"]["id"]
    assert PASSWORD not in str(made)
    await api.ready(made["tenant"]["id"])


async def test_the_key_of_registration_does_everything_a_key_can(api: Api):
    """Models, keys, settings, usage; but it is no person: users are not its business."""
    key = (await register(api, "ann@example.com"))["api_key"]["key"]
    for path in ("keys", "models", "usage", "runtime"):
        assert (await api.ask("GET", f"/tenants/me/{path}", key)).status_code == 200
    for path in ("users", "invitations"):
        assert (await api.ask("GET", f"/tenants/me/{path}", key)).status_code == 403
    asked = await api.ask("POST", "/tenants/me/keys", key, json={"scopes": ["users:write"]})
    assert asked.status_code == 422


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"email": "ann"}, "email"),
        ({"email": "a@b@c d"}, "email"),
        ({"password": "short"}, "10 to 200"),
        ({"password": "x" * 201}, "10 to 200"),
        ({"password": "password123"}, "too many people"),
        ({"password": "ann@example.com"}, "must not be your e-mail"),
        ({"organization": "…"}, "organization"),
        ({"organization": ""}, "organization"),
        ({"plan": "pro"}, "plan"),
        ({"email": None}, "email"),
    ],
)
async def test_a_registration_that_cannot_be(api: Api, change, said: str):
    """422 that names the field and never repeats the password; nothing is made."""
    body = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"} | change
    answer = await post(api, "/register", body)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
    assert str(change.get("password", "\0")) not in answer.text
    assert (await api.ask("GET", "/tenants")).json()["tenants"] == []


async def test_of_many_at_once_one_gets_the_address(api: Api):
    """Concurrent registrations of one address: one 201, the others 409, one tenant in the end."""
    bodies = [
        {"email": email, "password": PASSWORD, "organization": "Acme"}
        for email in ["ann@example.com", "ANN@example.com"] * 3
    ]
    answers = await asyncio.gather(*(post(api, "/register", body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
    assert "ann" not in next(a for a in answers if a.status_code == 409).json()["detail"]
    assert len((await api.ask("GET", "/tenants")).json()["tenants"]) == 1


async def test_the_operator_closes_registration(tmp_path: Path):
    """403, whoever asks; tenants are then the operator's to make."""
    async with serving(settings(tmp_path / "home", registration=Registration.CLOSED)) as api:
        body = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"}
        assert (await post(api, "/register", body)).status_code == 403
        await api.tenant("acme")


async def test_registration_by_invitation(tmp_path: Path):
    """The operator's token registers once; without one, or with a used one, it is 403."""
    async with serving(settings(tmp_path / "home", registration=Registration.INVITE)) as api:
        body = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"}
        assert (await post(api, "/register", body)).status_code == 403
        invited = (await api.ask("POST", "/invitations", json={"name": "Ann"})).json()
        listed = (await api.ask("GET", "/invitations")).json()["invitations"]
        assert [(one["id"], one["token"]) for one in listed] == [(invited["id"], None)]
        wrong = {"invitation": invited["token"][:-1] + "?"}
        assert (await post(api, "/register", body | wrong)).status_code == 403
        right = {"invitation": invited["token"]}
        made = await post(api, "/register", body | right)
        assert made.status_code == 201
        other = body | right | {"email": "bob@example.com"}
        assert (await post(api, "/register", other)).status_code == 403
        # Nor is it good for anything else, and the tenant it made has no say over the platform's.
        accept = {"token": invited["token"], "email": "eve@example.com", "password": PASSWORD}
        assert (await post(api, "/invitations/accept", accept)).status_code == 403
        key = made.json()["api_key"]["key"]
        assert (await api.ask("POST", "/invitations", key, json={})).status_code == 403


async def test_many_registrations_of_one_address_are_slowed_down(api: Api):
    """429 with Retry-After for the busy address only; a header of the client's changes nothing."""
    body = {"email": "ann@example.com", "password": "short", "organization": "Acme"}
    here = {"polyolo_client_address": "203.0.113.7"}
    codes = [
        (await post(api, "/register", body, **here, x_forwarded_for=f"198.51.100.{n}")).status_code
        for n in range(21)
    ]
    assert codes == [422] * 20 + [429]
    late = await post(api, "/register", body, **here)
    assert 1 <= int(late.headers["retry-after"]) <= 60
    there = await post(api, "/register", body, polyolo_client_address="203.0.113.8")
    assert there.status_code == 422


async def test_people_of_a_tenant_and_what_they_may(api: Api):
    """Owner, developer, viewer, billing: each may what the table says, from the next request on."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    people = {
        role: await join(api, ann, f"{role}@example.com", role)
        for role in ("developer", "viewer", "billing")
    }
    people["owner"] = ann
    may = {
        ("GET", "/tenants/me"): "owner developer viewer billing",
        ("GET", "/tenants/me/models"): "owner developer viewer",
        ("GET", "/tenants/me/usage"): "owner developer viewer billing",
        ("GET", "/tenants/me/keys"): "owner developer",
        ("GET", "/tenants/me/users"): "owner",
        ("GET", "/tenants"): "",
    }
    for (method, path), roles in may.items():
        for role, person in people.items():
            answer = await person.ask(method, path)
            assert answer.status_code == (200 if role in roles.split() else 403), (path, role)
    # A key that a developer makes has a key's scopes, none of a person's.
    made = await people["developer"].ask("POST", "/tenants/me/keys", json={})
    assert "account:own" not in made.json()["scopes"]
    assert "detect" in made.json()["scopes"]
    viewer = people["viewer"]
    changed = await ann.ask("PATCH", f"/tenants/me/users/{viewer.user}", json={"role": "developer"})
    assert changed.json()["role"] == "developer"
    assert (await viewer.ask("GET", "/tenants/me/keys")).status_code == 200
    assert (await ann.ask("DELETE", f"/tenants/me/users/{viewer.user}")).status_code == 204
    assert (await viewer.ask("GET", "/tenants/me")).status_code == 401
    emails = [one["email"] for one in (await ann.ask("GET", "/tenants/me/users")).json()["users"]]
    assert emails == ["ann@example.com", "developer@example.com", "billing@example.com"]


async def test_the_last_owner_stays(api: Api):
    """409 for whatever would leave a tenant to nobody."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    own = f"/tenants/me/users/{ann.user}"
    assert (await ann.ask("DELETE", own)).status_code == 409
    assert (await ann.ask("PATCH", own, json={"role": "viewer"})).status_code == 409
    assert (await ann.ask("PATCH", own, json={"role": "king"})).status_code == 422
    bob = await join(api, ann, "bob@example.com", "owner")
    assert (await bob.ask("PATCH", own, json={"role": "viewer"})).status_code == 200
    assert (await ann.ask("GET", "/tenants/me/users")).status_code == 403


async def test_an_invitation_is_used_once_withdrawn_and_expires(api: Api):
    """The token is told once; used, withdrawn, expired or mangled, it is 403 in one wording."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")

    async def invite() -> dict:
        body = {"role": "viewer", "name": "Bob", "expires_in": "1h"}
        return (await ann.ask("POST", "/tenants/me/invitations", json=body)).json()

    async def accept(token: str, email: str) -> tuple[int, str]:
        body = {"token": token, "email": email, "password": PASSWORD}
        answer = await post(api, "/invitations/accept", body)
        return answer.status_code, answer.json().get("detail", "")

    used, withdrawn, late = [await invite() for _ in range(3)]
    assert (await accept(used["token"], "bob@example.com"))[0] == 201
    path = f"/tenants/me/invitations/{withdrawn['id']}"
    assert (await ann.ask("DELETE", path)).status_code == 204
    assert (await ann.ask("DELETE", path)).status_code == 404
    listed = (await ann.ask("GET", "/tenants/me/invitations")).json()["invitations"]
    assert [one["token"] for one in listed] == [None, None]
    refusals = {
        await accept(used["token"], "c@example.com"),
        await accept(withdrawn["token"], "d@example.com"),
        await accept(late["token"][:-1], "e@example.com"),
    }
    now = api.control.plane.ledger.clock()
    api.control.plane.ledger.clock = lambda: now + 3601
    refusals.add(await accept(late["token"], "f@example.com"))
    assert len(refusals) == 1
    assert refusals.pop()[0] == 403


async def test_two_at_once_with_one_invitation(api: Api):
    """One becomes a user."""
    await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    token = (await ann.ask("POST", "/tenants/me/invitations", json={"role": "viewer"})).json()[
        "token"
    ]
    bodies = [
        {"token": token, "email": f"{name}@example.com", "password": PASSWORD} for name in "abcd"
    ]
    answers = await asyncio.gather(*(post(api, "/invitations/accept", body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403]


async def test_an_owner_is_nobody_in_another_tenant(api: Api):
    """Users, invitations and the tenant itself: 404 in the words of what does not exist."""
    theirs = await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    invited = (await ann.ask("POST", "/tenants/me/invitations", json={"role": "viewer"})).json()
    await register(api, "bob@example.com", "Other")
    bob = await sign_in(api, "bob@example.com")
    for method, path, more in (
        ("GET", f"/tenants/{theirs['tenant']['name']}/users", {}),
        ("GET", f"/tenants/{theirs['tenant']['id']}/users", {}),
        ("DELETE", f"/tenants/me/users/{ann.user}", {}),
        ("PATCH", f"/tenants/me/users/{ann.user}", {"json": {"role": "viewer"}}),
        ("DELETE", f"/tenants/me/invitations/{invited['id']}", {}),
    ):
        answer = await bob.ask(method, path, **more)
        assert answer.status_code == 404, path
        assert "ann@example.com" not in answer.text
    assert (await ann.ask("GET", "/tenants/me/users")).json()["users"][0]["role"] == "owner"


async def test_a_deleted_tenants_people_are_gone(api: Api):
    """Their sessions stop at once; the address is free again once the runtime is down."""
    made = await register(api, "ann@example.com")
    ann = await sign_in(api, "ann@example.com")
    assert (await api.ask("DELETE", f"/tenants/{made['tenant']['id']}")).status_code == 204
    assert (await ann.ask("GET", "/tenants/me")).status_code == 401
    again = {"email": "ann@example.com", "password": PASSWORD, "organization": "Acme"}
    async with asyncio.timeout(15):
        while (await post(api, "/register", again)).status_code != 201:
            await asyncio.sleep(0.2)


async def test_a_suspended_tenants_user_signs_in_and_out_only(api: Api):
    """403 for the tenant's resources; the session itself is the user's own."""
    made = await register(api, "ann@example.com")
    await api.ask("PATCH", f"/tenants/{made['tenant']['id']}", json={"state": "suspended"})
    ann: Person = await sign_in(api, "ann@example.com")
    assert (await ann.ask("GET", "/tenants/me")).status_code == 403
    assert (await ann.ask("GET", "/sessions/current")).status_code == 200
    assert (await ann.ask("DELETE", "/sessions/current")).status_code == 204
    assert (await ann.ask("GET", "/sessions/current")).status_code == 401


async def test_no_address_and_no_password_lies_in_the_database(api: Api):
    """Neither is found in the bytes of the home; the canary shows that the search works."""
    await register(api, "canary-ann@example.com", "canary organization")
    await sign_in(api, "canary-ann@example.com")
    if not api.control.settings.database_url.startswith("sqlite"):
        pytest.skip("the files of a server are not the home's")
    bytes_of_home = b"".join(
        file.read_bytes() for file in api.control.settings.home.rglob("*") if file.is_file()
    )
    assert b"canary-organization" in bytes_of_home  # the tenant's name
    for secret in (b"canary-ann", PASSWORD.encode()):
        assert secret not in bytes_of_home
