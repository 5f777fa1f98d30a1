"""Attacks on sign-in through the provider: none signs anybody in, each is told and audited."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import pytest_asyncio
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey
from starlette.responses import JSONResponse, PlainTextResponse

from polyolo.control import db
from polyolo.control.external import LONGEST_S
from tests.integration.control_plane import serving, settings
from tests.integration.people import PASSWORD, register, sign_in
from tests.integration.provider import (
    ANN,
    NAME,
    SECRET,
    START,
    Browser,
    Provider,
    Stage,
    new_key,
    providing,
)

COOKIE, SESSION = "polyolo_sign_in", "polyolo_session"


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A platform on which Ann is known."""
    async with providing() as provider:
        chosen = settings(tmp_path / "home", provider=provider.settings())
        async with serving(chosen) as api:
            stage = Stage(api, provider)
            assert (await stage.browser().sign_in(organization="Acme")).status_code == 303
            yield stage


def changed(path: str, **values: str | None) -> str:
    """Return a path with other parameters; None takes one away."""
    parts = urlsplit(path)
    query = {name: found[0] for name, found in parse_qs(parts.query).items()} | values
    given = {name: value for name, value in query.items() if value is not None}
    return f"{parts.path}?{urlencode(given)}"


def sessions(stage: Stage) -> int:
    with stage.api.control.plane.ledger.reading() as connection:
        count = sa.select(sa.func.count()).select_from(db.sessions)
        return int(connection.execute(count).scalar_one())


def compact(header: dict[str, Any], said: dict[str, Any], signature: str = "") -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in (header, said)]
    return ".".join([*(part.rstrip(b"=").decode() for part in parts), signature])


def forgeries(key: ECKey) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return what makes ID tokens that are none, by what is wrong with them."""
    now = int(time.time())

    def good(said: dict[str, Any], **more: Any) -> str:
        return jwt.encode({"alg": "ES256", "kid": key.kid, **more}, said, key, ["ES256"])

    def mutated(said: dict[str, Any]) -> str:
        head, body, signature = good(said).split(".")
        other = good(said | {"sub": "mallory"}).split(".")[1]
        return f"{head}.{other}.{signature}" if other != body else ""

    public = json.dumps(key.as_dict(private=False)).encode()
    head = {"alg": "HS256", "kid": key.kid}
    return {
        "alg none": lambda said: compact({"alg": "none"}, said),
        "HS256 with the public key": lambda said: jwt.encode(
            head, said, OctKey.import_key(public), ["HS256"]
        ),
        "HS256 with the client's secret": lambda said: jwt.encode(
            head, said, OctKey.import_key(SECRET), ["HS256"]
        ),
        "unsigned": lambda said: good(said).rpartition(".")[0] + ".",
        "mutated": mutated,
        "another's key": lambda said: jwt.encode(
            {"alg": "ES256", "kid": key.kid}, said, new_key(), ["ES256"]
        ),
        "a key of its own": lambda said: jwt.encode({"alg": "ES256"}, said, new_key(), ["ES256"]),
        "wrong nonce": lambda said: good(said | {"nonce": "m" * 43}),
        "without a nonce": lambda said: good({k: v for k, v in said.items() if k != "nonce"}),
        "wrong issuer": lambda said: good(said | {"iss": "https://evil.example"}),
        "wrong audience": lambda said: good(said | {"aud": "another"}),
        "for others too": lambda said: good(said | {"aud": ["polyolo", "x"], "azp": "polyolo"}),
        "issued to another": lambda said: good(said | {"azp": "another"}),
        "expired": lambda said: good(said | {"exp": now - 120}),
        "of tomorrow": lambda said: good(said | {"iat": now + 86400, "exp": now + 87000}),
        "of another access token": lambda said: good(said | {"at_hash": "A" * 22}),
        "an access token": lambda said: good(said, typ="at+jwt"),
        "no text": lambda said: {"sub": said["sub"]},
        "nothing": lambda _: None,
    }


async def test_no_forged_id_token_signs_anybody_in(stage: Stage):
    """403 for each, no cookie but the one that ends; why is in the audit log, the token is not."""
    before = sessions(stage)
    made: list[str] = []
    for name, forge in forgeries(stage.provider.key).items():
        stage.provider.sign = lambda said, forge=forge: made.append(forge(said)) or made[-1]
        browser = stage.browser()
        answer = await browser.sign_in()
        assert answer.status_code == 403, name
        assert "refused" in answer.json()["detail"], name
        assert browser.cookies == {}, name
    assert sessions(stage) == before
    with stage.api.control.plane.ledger.reading() as connection:
        events = str(connection.execute(sa.select(db.events)).all())
    assert events.count("ID token is refused") == len(made)
    assert not any(isinstance(token, str) and len(token) > 9 and token in events for token in made)
    stage.provider.sign = None
    assert (await stage.browser().sign_in()).status_code == 303


async def test_an_answer_counts_once_and_in_its_own_browser_only(stage: Stage):
    """Replayed, brought by another browser or by none, or with another state: 400."""
    browser, other = stage.browser(), stage.browser()
    path = await browser.visit(await browser.start())
    await other.start()
    cookie = dict(browser.cookies)
    tampered = cookie[COOKIE][:-2] + ("AA" if cookie[COOKIE][-2:] != "AA" else "BB")
    for thief in (other, stage.browser(), Browser(stage.api, {COOKIE: tampered})):
        refused = await thief.back(path)
        assert refused.status_code == 400
        assert "start again" in refused.json()["detail"]
        assert SESSION not in thief.cookies
    assert COOKIE in other.cookies, "somebody else's answer ends no sign-in"
    for wrong in (changed(path, state="x" * 43), changed(path, state=None), f"{path}&state=x"):
        assert (await browser.back(wrong)).status_code == 400
    assert (await browser.back(path)).status_code == 303
    for kept in (browser, Browser(stage.api, cookie)):
        assert (await kept.back(path)).status_code == 400, "the code is not even asked about"
    assert stage.provider.asked.count("/token") == 2


async def test_nobody_is_signed_in_as_somebody_else_unknowingly(stage: Stage):
    """Another site neither begins a sign-in nor brings one of its own to an end."""
    for fetched in ("cross-site", "same-site"):
        answer = await stage.browser().ask("GET", START, headers={"sec-fetch-site": fetched})
        assert answer.status_code == 403
        sent = {"headers": {"sec-fetch-site": fetched}, "json": {}}
        assert (await stage.browser().ask("POST", START, **sent)).status_code == 403
    evil = {"headers": {"origin": "https://evil.example"}, "json": {}}
    assert (await stage.browser().ask("POST", START, **evil)).status_code == 403
    attacker, victim = stage.browser(), stage.browser()
    path = await attacker.visit(await attacker.start())
    assert (await victim.back(path)).status_code == 400
    await victim.start()
    assert (await victim.back(path)).status_code == 400
    assert SESSION not in victim.cookies


@pytest.mark.parametrize("checks_pkce", [True, False])
async def test_a_stolen_code_is_good_for_nobody(stage: Stage, checks_pkce):
    """In a flow of the thief's own: the verifier is another, and so is the nonce."""
    stage.provider.checks_pkce = checks_pkce
    victim, thief = stage.browser(), stage.browser()
    stolen = parse_qs(urlsplit(await victim.visit(await victim.start())).query)["code"][0]
    stage.provider.person = {"sub": "thief"}
    own = await thief.visit(await thief.start())
    answer = await thief.back(changed(own, code=stolen))
    assert answer.status_code == 403
    expected = "start again" if checks_pkce else "nonce"
    assert expected in answer.json()["detail"]


async def test_an_answer_of_another_provider_is_refused_before_it_is_told_the_code(stage: Stage):
    """Mix-up: the answer's issuer is another one, or missing where it is announced."""
    for issuer in ("https://evil.example", None):
        browser = stage.browser()
        path = await browser.visit(await browser.start())
        asked = stage.provider.asked.count("/token")
        answer = await browser.back(changed(path, iss=issuer))
        assert answer.status_code == 403
        assert "not of the sign-in provider" in answer.json()["detail"]
        assert stage.provider.asked.count("/token") == asked


async def test_a_sign_in_takes_ten_minutes_at_most(stage: Stage):
    """The cookie says so, and so does what is sealed in it."""
    browser = stage.browser()
    answer = await browser.ask("GET", START)
    (line,) = answer.headers.get_list("set-cookie")
    assert line.split("; ")[1:] == ["Path=/", "HttpOnly", "SameSite=Lax", f"Max-Age={LONGEST_S}"]
    path = await browser.visit(answer.headers["location"])
    ledger = stage.api.control.plane.ledger
    later = ledger.clock() + LONGEST_S
    ledger.clock, clock = lambda: later, ledger.clock
    assert (await browser.back(path)).status_code == 400
    ledger.clock = clock
    assert (await browser.back(path)).status_code == 303


async def test_what_the_cookie_holds_cannot_be_read_and_not_be_made(stage: Stage, tmp_path: Path):
    """Neither state nor verifier; one of another platform is none; the longest is kept whole."""
    browser = stage.browser()
    await browser.start(organization="\U0001f600" * 199 + "a", next="/" + "x" * 299)
    assert len(browser.cookies[COOKIE]) < 4000  # browsers drop what is longer than 4096
    url = await browser.start(organization="secret organization")
    state = parse_qs(urlsplit(url).query)["state"][0]
    sealed = base64.b64decode(browser.cookies[COOKIE])
    assert state.encode() not in sealed
    assert b"secret organization" not in sealed
    path = await browser.visit(url)
    chosen = settings(tmp_path / "other", provider=stage.provider.settings())
    async with serving(chosen) as api:
        assert (await Browser(api, browser.cookies).back(path)).status_code == 400


ELSEWHERE = (
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/a\r\nset-cookie: x=y",
    "javascript:alert(1)",
    "evil.example",
    "",
    "/é",
    "/" + "x" * 300,
)


async def test_nobody_is_sent_to_another_site(stage: Stage):
    """A path of ours or 422, at the beginning."""
    ann = stage.browser()
    await ann.sign_in()
    for target in ELSEWHERE:
        answers = [
            await stage.browser().ask("GET", START, params={"next": target}),
            await stage.browser().ask("POST", START, json={"next": target}),
            await ann.act("POST", "/sessions/current/identities", json={"next": target}),
        ]
        assert [answer.status_code for answer in answers] == [422] * 3, target


async def test_no_session_is_fixed(stage: Stage):
    """A planted session is not the one afterwards, and one that was is over."""
    browser = stage.browser()
    browser.cookies[SESSION] = "A" * 43
    assert (await browser.sign_in()).status_code == 303
    first = browser.cookies[SESSION]
    assert first != "A" * 43
    assert (await browser.sign_in()).status_code == 303
    old = Browser(stage.api, {SESSION: first})
    assert (await old.ask("GET", "/api/v1/sessions/current")).status_code == 401


async def test_nobody_links_their_identity_to_anothers_account(stage: Stage):
    """Not without the session that began, nor from another site, nor after signing out."""
    await register(stage.api, "bob@example.com")
    path = "/sessions/current/identities"
    stage.provider.person = {"sub": "mallory"}

    async def bob() -> Browser:
        person = await sign_in(stage.api, "bob@example.com")
        return Browser(stage.api, {SESSION: person.cookie.partition("=")[2]})

    owner = await bob()
    forged = await owner.ask("POST", f"/api/v1{path}", json={"password": PASSWORD})
    assert forged.status_code == 403, "without the CSRF token"
    begun = await owner.act("POST", path, json={"password": PASSWORD})
    back = await owner.visit(begun.json()["url"])
    other = await bob()  # the same user in another session, with the cookie of the first
    other.cookies[COOKIE] = owner.cookies[COOKIE]
    assert (await other.back(back)).status_code == 403

    owner = await bob()
    begun = await owner.act("POST", path, json={"password": PASSWORD})
    back = await owner.visit(begun.json()["url"])
    assert (await owner.act("DELETE", "/sessions/current")).status_code == 204
    assert (await owner.back(back)).status_code == 401
    assert (await stage.browser().sign_in()).status_code == 403


async def test_behind_tls_the_cookie_is_of_our_own_host_only(tmp_path: Path):
    """`__Host-` and `Secure`; under the plain name it is none."""
    async with providing() as provider:
        chosen = settings(tmp_path / "home", provider=provider.settings(), secure_cookies=True)
        async with serving(chosen) as api:
            browser = Browser(api)
            answer = await browser.ask("GET", START)
            (line,) = answer.headers.get_list("set-cookie")
            assert line.startswith(f"__Host-{COOKIE}=")
            assert "; Secure" in line
            path = await browser.visit(answer.headers["location"])
            plain = Browser(api, {COOKIE: browser.cookies[f"__Host-{COOKIE}"]})
            assert (await plain.back(path)).status_code == 400
            assert (await browser.back(path)).status_code == 403  # nobody is known yet


async def test_guessing_codes_becomes_slow(stage: Stage):
    """Each costs the provider a request: from one address 429 after fifty."""
    here = {"polyolo-client-address": "203.0.113.7"}
    codes = []
    for _ in range(51):
        browser = stage.browser()
        path = await browser.visit(await browser.start())
        codes.append((await browser.back(changed(path, code="guess"), **here)).status_code)
    assert codes == [403] * 50 + [429]
    browser = stage.browser()
    path = await browser.visit(await browser.start())
    assert (
        await browser.back(path, **here | {"polyolo-client-address": "203.0.113.8"})
    ).is_redirect


async def test_a_provider_that_is_down_ends_no_session(stage: Stage):
    """503 with the seconds to wait, as a page in a browser; whoever is signed in stays so."""
    ann = stage.browser()
    await ann.sign_in()
    browser = stage.browser()
    path = await browser.visit(await browser.start())
    stage.provider.instead["/token"] = PlainTextResponse("busy", 502)
    answer = await browser.back(path, accept="text/html,*/*")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "Start again" in answer.text
    assert (await ann.ask("GET", "/api/v1/sessions/current")).status_code == 200
    assert (await ann.act("POST", "/tenants/me/keys", json={})).status_code == 201
    assert (await stage.api.http.get("/readyz")).status_code == 200
    del stage.provider.instead["/token"]
    assert (await browser.sign_in()).status_code == 303


async def test_without_a_provider_and_with_a_refusal_at_it(stage: Stage, tmp_path: Path):
    """404 where there is none; 403 when the person gave up there, in our words only."""
    browser = stage.browser()
    path = await browser.visit(await browser.start())
    refused = changed(path, code=None, error="<script>alert(1)</script>")
    answer = await browser.back(refused, accept="text/html")
    assert answer.status_code == 403
    assert "at Example &amp; Co;" in answer.text
    assert "script" not in answer.text
    ways = await stage.api.http.get("/api/v1/sign-in")
    assert ways.json() == {"registration": "open", "provider": NAME}
    async with serving(settings(tmp_path / "bare")) as api:
        assert (await api.http.get("/api/v1/sign-in")).json()["provider"] is None
        for method, path in (("GET", START), ("POST", START), ("GET", f"{START}/callback")):
            answer = await Browser(api).ask(
                method, path, **({"json": {}} if method == "POST" else {})
            )
            assert answer.status_code == 404


async def test_nothing_of_the_provider_is_kept_in_clear(tmp_path: Path):
    """Neither its secret, nor the subject, nor a token, nor the address: not in a file of ours."""
    tokens: list[str] = []

    def remembered(provider: Provider) -> Callable[[dict[str, Any]], str]:
        def sign(said: dict[str, Any]) -> str:
            key = provider.key
            tokens.append(jwt.encode({"alg": "ES256", "kid": key.kid}, said, key, ["ES256"]))
            return tokens[-1]

        return sign

    async with providing() as provider:
        provider.sign = remembered(provider)
        chosen = settings(tmp_path / "home", provider=provider.settings(), database="")
        async with serving(chosen) as api:
            browser = Browser(api)
            assert (await browser.sign_in(organization="Acme")).status_code == 303
            cookie = browser.cookies[SESSION]
    canaries = [SECRET, ANN["sub"], ANN["email"], tokens[0], cookie]
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert files
    for canary in canaries:
        assert not any(canary.encode() in path.read_bytes() for path in files), canary


async def test_userinfo_that_fails(stage: Stage):
    """A refusal there leaves the identity as the ID token has it; no answer is 503."""
    stage.provider.claims = {"email": None}
    for answer in (PlainTextResponse("no"), JSONResponse({"error": "x"}, 401)):
        stage.provider.instead["/userinfo"] = answer
        status = (await stage.browser().sign_in()).status_code
        assert status == (503 if answer.media_type == "text/plain" else 303)
