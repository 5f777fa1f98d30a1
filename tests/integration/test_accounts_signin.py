"""Sessions over a real socket: signed in, out, guessed at, fixed, asked for by other sites."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service import sessions
from tests.integration.control_plane import Api, serving, settings
from tests.integration.people import PASSWORD, post, register, sign_in

ANN = "ann@example.com"


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        await register(api, ANN)
        yield api


async def test_signed_in_and_out(api: Api):
    """The cookie is HttpOnly and Lax, holds nothing that is stored, and is dead after sign-out."""
    answer = await post(api, "/sessions", {"email": " ANN@Example.com", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 201
    assert [part.strip() for part in cookie.split(";")[1:]] == [
        "Path=/",
        "HttpOnly",
        "SameSite=Lax",
    ]
    assert answer.headers["cache-control"] == "no-store"
    value = cookie.partition(";")[0].partition("=")[2]
    with api.control.plane.ledger.reading() as connection:
        stored = connection.execute(sa.select(db.sessions.c.digest)).scalar_one()
    assert stored == hashlib.sha256(value.encode()).hexdigest()

    ann = await sign_in(api, ANN)
    shown = await ann.ask("GET", "/sessions/current")
    assert (shown.json()["user"]["email"], shown.json()["csrf_token"]) == (ANN, ann.csrf)
    out = await ann.ask("DELETE", "/sessions/current")
    assert (out.status_code, "Max-Age=0" in out.headers["set-cookie"]) == (204, True)
    assert (await ann.ask("GET", "/sessions/current")).status_code == 401


async def test_behind_tls_the_cookie_is_secure(tmp_path: Path):
    """`Secure`, and under the name that a browser takes from our own host only."""
    async with serving(settings(tmp_path / "home", secure_cookies=True)) as api:
        await register(api, ANN)
        answer = await post(api, "/sessions", {"email": ANN, "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-polyolo_session=")
        assert cookie.endswith("; Secure")
        value = cookie.partition(";")[0].partition("=")[2]
        plain = {"cookie": f"polyolo_session={value}"}
        answer = await api.http.get("/api/v1/sessions/current", headers=plain)
        assert answer.status_code == 401


async def test_an_unknown_address_is_answered_like_a_wrong_password(api: Api):
    """The same 401 to the byte, after the same hash."""
    bodies = [{"email": ANN, "password": "wrong"}, {"email": "bob@x.de", "password": PASSWORD}]
    answers = [await post(api, "/sessions", body, x_request_id="same") for body in bodies]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].content == answers[1].content
    assert "set-cookie" not in answers[1].headers


async def test_guessing_becomes_slow(api: Api):
    """After five wrong tries at once 429; even the right password waits, from that address only."""
    here, there = "203.0.113.7", "203.0.113.8"

    async def attempt(password: str, source: str) -> int:
        body = {"email": ANN, "password": password}
        # What a client says of its own address is not believed.
        return (
            await post(
                api,
                "/sessions",
                body,
                polyolo_client_address=source,
                x_forwarded_for="198.51.100.1",
            )
        ).status_code

    codes = await asyncio.gather(*(attempt(f"wrong {n}", here) for n in range(12)))
    assert sorted(codes) == [401] * 5 + [429] * 7
    body = {"email": ANN, "password": PASSWORD}
    held = await post(api, "/sessions", body, polyolo_client_address=here)
    assert held.status_code == 429
    assert int(held.headers["retry-after"]) >= 1
    assert await attempt(PASSWORD, there) == 201


async def test_no_session_is_fixed(api: Api):
    """A session planted before sign-in is not the one after it, and one that was is over."""
    planted = {"cookie": "polyolo_session=" + "A" * 43}
    ann = await sign_in(api, ANN, **planted)
    assert "A" * 43 not in ann.cookie
    answer = await api.http.get("/api/v1/sessions/current", headers=planted)
    assert answer.status_code == 401
    again = await sign_in(api, ANN, cookie=ann.cookie)
    assert again.cookie != ann.cookie
    assert (await ann.ask("GET", "/sessions/current")).status_code == 401
    assert (await again.ask("GET", "/sessions/current")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-csrf-token": ""},
        {"x-csrf-token": "0" * 64},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
async def test_another_site_changes_nothing(api: Api, headers):
    """403 for a request with the cookie, but not from a page of ours; reading is left alone."""
    ann = await sign_in(api, ANN)
    answer = await ann.ask("POST", "/tenants/me/keys", json={}, headers=headers)
    assert answer.status_code == 403
    assert len((await ann.ask("GET", "/tenants/me/keys")).json()["keys"]) == 1
    own = {"origin": "http://control", "sec-fetch-site": "same-origin"}
    answer = await ann.ask("POST", "/tenants/me/keys", json={}, headers=own)
    assert answer.status_code == 201


async def test_another_sessions_csrf_token_is_none(api: Api):
    """The token is bound to the session."""
    ann, other = await sign_in(api, ANN), await sign_in(api, ANN)
    answer = await ann.ask("POST", "/tenants/me/keys", json={}, csrf=other.csrf)
    assert answer.status_code == 403


async def test_no_site_signs_a_visitor_in(api: Api):
    """A cross-site sign-in is 403, and a form's body is none: 422."""
    body = {"email": ANN, "password": PASSWORD}
    answer = await post(api, "/sessions", body, sec_fetch_site="cross-site")
    assert answer.status_code == 403
    plain = {"content-type": "text/plain"}
    text = f'{{"email": "{ANN}", "password": "{PASSWORD}"}}'
    answer = await api.http.post("/api/v1/sessions", content=text, headers=plain)
    assert answer.status_code == 422


async def test_a_session_ends_by_itself(api: Api):
    """After an hour without a request, and after twelve with any number of them."""
    idle, busy = await sign_in(api, ANN), await sign_in(api, ANN)
    ledger = api.control.plane.ledger
    start = ledger.clock()
    for hours in range(1, 24):
        now = start + hours * sessions.IDLE_S / 2 + 1
        ledger.clock = lambda now=now: now
        expected = 200 if now < start + sessions.LONGEST_S else 401
        assert (await busy.ask("GET", "/sessions/current")).status_code == expected
    ledger.clock = lambda: start + sessions.LONGEST_S + 1
    assert (await busy.ask("GET", "/sessions/current")).status_code == 401
    ledger.clock = lambda: start + sessions.IDLE_S + 1
    assert (await idle.ask("GET", "/sessions/current")).status_code == 401


async def test_the_oldest_session_makes_way(api: Api):
    """No more than twenty of one user are kept."""
    ledger = api.control.plane.ledger
    start = ledger.clock()
    ledger.clock = lambda: start
    first = await sign_in(api, ANN)
    for later in range(1, sessions.MOST + 1):
        ledger.clock = lambda later=later: start + later
        last = await sign_in(api, ANN)
    assert (await first.ask("GET", "/sessions/current")).status_code == 401
    assert (await last.ask("GET", "/sessions/current")).status_code == 200


async def test_a_new_password_ends_the_other_sessions(api: Api):
    """The old password must be known; afterwards only the new one signs in."""
    ann, other = await sign_in(api, ANN), await sign_in(api, ANN)
    path, new = "/sessions/current/password", "quite another secret"
    wrong = await ann.ask("PUT", path, json={"old": "wrong", "new": new})
    assert wrong.status_code == 401
    weak = await ann.ask("PUT", path, json={"old": PASSWORD, "new": "password123"})
    assert weak.status_code == 422
    assert (await other.ask("GET", "/sessions/current")).status_code == 200
    assert (await ann.ask("PUT", path, json={"old": PASSWORD, "new": new})).status_code == 204
    assert (await other.ask("GET", "/sessions/current")).status_code == 401
    assert (await ann.ask("GET", "/sessions/current")).status_code == 200
    old = await post(api, "/sessions", {"email": ANN, "password": PASSWORD})
    assert old.status_code == 401
    await sign_in(api, ANN, new)


async def test_a_key_has_no_account(api: Api):
    """403 for a key and for the operator, who is nobody to sign out."""
    _, key = await api.tenant("acme")
    for credential in (key, None):
        answer = await api.ask("GET", "/sessions/current", credential)
        assert answer.status_code == 403


async def test_a_header_wins_over_a_cookie(api: Api):
    """Whoever sends a key is asked for no CSRF token: no page of another site can send one."""
    ann = await sign_in(api, ANN)
    _, key = await api.tenant("acme")
    headers = {"authorization": f"Bearer {key}"}
    shown = await ann.ask("GET", "/tenants/me", headers=headers)
    assert shown.json()["name"] == "acme"
    answer = await ann.ask("POST", "/tenants/me/keys", csrf="", json={}, headers=headers)
    assert answer.status_code == 201
