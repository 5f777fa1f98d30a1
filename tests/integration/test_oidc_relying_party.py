"""The relying party beside a provider that changes its keys, fails, or is not what it says."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from starlette.responses import JSONResponse, PlainTextResponse

from polyolo.control.idtoken import IdentityClaims
from polyolo.control.oidc import FRESH_S, KEPT_S, PAUSE_S, AuthenticationRequest, RelyingParty
from polyolo.control.outbound import Outbound
from polyolo.control.provider import IdentityProvider
from polyolo.errors import ForbiddenError, InvalidValueError, NotReadyError
from tests.integration.provider import ANN, REDIRECT, Browser, Provider, new_key, providing

DESCRIBED, LISTED = "/.well-known/openid-configuration", "/jwks"


@dataclass
class Stage:
    """A relying party, its provider, and how old everything is."""

    provider: Provider
    now: float = 1e6
    party: RelyingParty = field(init=False)

    def configured(self, **changes: str) -> None:
        self.party = RelyingParty(
            self.provider.settings(**changes),
            REDIRECT,
            clock=time.time,
            outbound=Outbound(),
            age=lambda: self.now,
        )

    async def sign_in(self) -> IdentityClaims:
        """Go the whole way."""
        request = AuthenticationRequest(
            state=secrets.token_urlsafe(), nonce=secrets.token_urlsafe(), verifier="v" * 43
        )
        url = await self.party.authentication_url(request)
        back = parse_qs(urlsplit(await Browser(None).visit(url)).query)
        return await self.party.redeem(request, back["code"][0], back["iss"][0])

    def asked(self, path: str) -> int:
        return self.provider.asked.count(path)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    async with providing() as provider:
        stage = Stage(provider)
        stage.configured()
        yield stage


async def test_description_and_keys_are_kept_for_a_while(stage: Stage):
    """Asked for once, also by many at once; again when they are old."""
    found = await asyncio.gather(*(stage.sign_in() for _ in range(5)))
    assert {claims.subject for claims in found} == {ANN["sub"]}
    assert (stage.asked(DESCRIBED), stage.asked(LISTED)) == (1, 1)
    stage.now += KEPT_S
    await stage.sign_in()
    assert (stage.asked(DESCRIBED), stage.asked(LISTED)) == (2, 2)


async def test_a_new_key_is_found_and_unknown_ones_cost_little(stage: Stage):
    """A token that names an unknown key has the keys read again, at most every half minute."""
    await stage.sign_in()
    stage.now += FRESH_S
    stage.provider.key = new_key()
    await stage.sign_in()
    assert stage.asked(LISTED) == 2
    stage.provider.listed = [stage.provider.key.as_dict(private=False)]
    stage.provider.key = new_key()  # that is in no list
    for _ in range(5):
        with pytest.raises(ForbiddenError, match="does not list"):
            await stage.sign_in()
    assert stage.asked(LISTED) == 2
    stage.now += FRESH_S
    for _ in range(5):
        with pytest.raises(ForbiddenError, match="does not list"):
            await stage.sign_in()
    assert stage.asked(LISTED) == 3


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (DESCRIBED, PlainTextResponse("busy", 502)),
        (DESCRIBED, JSONResponse({"issuer": "https://another.example"})),
        (LISTED, JSONResponse({"keys": "none"})),
        (LISTED, JSONResponse({"keys": []}, 500)),
        ("/token", JSONResponse({"error": "server_error"}, 500)),
        ("/token", JSONResponse({"error": "invalid_client"}, 401)),
        ("/token", PlainTextResponse("x" * 300_000)),
    ],
)
async def test_a_provider_that_fails_is_unavailable_for_a_moment(stage: Stage, path, answer):
    """503 in our words; whoever comes next is not kept waiting; soon it is asked again."""
    stage.provider.instead[path] = answer
    with pytest.raises(NotReadyError, match="whoever is signed in stays so") as raised:
        await stage.sign_in()
    assert raised.value.retry_after == PAUSE_S
    asked = stage.asked(path)
    with pytest.raises(NotReadyError):
        await stage.sign_in()
    assert path == "/token" or stage.asked(path) == asked
    del stage.provider.instead[path]
    stage.now += PAUSE_S
    assert (await stage.sign_in()).subject == ANN["sub"]


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://another.example"},
        {"issuer": None},
        {"token_endpoint": "http://login.example.com/token"},
        {"token_endpoint": "https://user@login.example.com/token"},
        {"token_endpoint": None},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": ["https://login.example.com"]},
        {"jwks_uri": "file:///etc/passwd"},
        {"userinfo_endpoint": "//elsewhere"},
    ],
)
async def test_a_description_that_is_not_to_be_trusted(stage: Stage, changes):
    """Another issuer, or an endpoint to which a secret would travel in clear: 503."""
    stage.provider.metadata = changes
    with pytest.raises(NotReadyError):
        await stage.sign_in()
    assert "/token" not in stage.provider.asked


async def test_the_client_proves_itself_as_the_provider_wants_it(stage: Stage):
    """By Basic or in the form; a wrong secret is told to nobody but the operator."""
    stage.configured(client_secret="wrong")
    with pytest.raises(NotReadyError, match="client id or secret") as raised:
        await stage.sign_in()
    assert "wrong" not in raised.value.detail
    stage.provider.proofs.clear()
    stage.provider.instead["/token"] = JSONResponse({"error": "invalid_grant"}, 400)
    for ways, secret in (("client_secret_post", "s"), ("client_secret_basic", "s"), ("x", "")):
        stage.provider.metadata = {"token_endpoint_auth_methods_supported": [ways]}
        stage.configured(client_secret=secret)
        with pytest.raises(ForbiddenError, match="start again"):
            await stage.sign_in()
    (post, no), (basic, header), (public, none) = stage.provider.proofs
    assert (b"client_secret=s" in post, no) == (True, None)
    assert (b"secret" in basic, header) == (False, "Basic cG9seW9sbzpz")
    assert (b"client_id=polyolo" in public, b"secret" in public, none) == (True, False, None)


@pytest.mark.parametrize(
    "issuer",
    [
        "http://login.example.com",
        "http://127.0.0.1.example.com",
        "https://login.example.com?x=1",
        "https://login.example.com#x",
        "https://user:secret@login.example.com",
        "https://",
        "login.example.com",
        "https://login.example.com\\@evil",
        "https://login.example.com:port",
        "https://exa mple.com",
        "https://login.example.com/" + "x" * 500,
        "",
    ],
)
def test_an_issuer_that_is_none(issuer):
    """https only, but for this machine; one sentence for the operator."""
    with pytest.raises(InvalidValueError, match="issuer"):
        IdentityProvider(issuer=issuer, client_id="x")


def test_an_issuer_on_this_machine_and_its_name():
    """http is enough there; people are told the host unless there is a name."""
    found = IdentityProvider(issuer="http://[::1]:9400/a", client_id="x", client_secret="canary")
    assert (found.title, "canary" in repr(found)) == ("::1", False)
    with pytest.raises(InvalidValueError, match="client id"):
        IdentityProvider(issuer="https://login.example.com", client_id="")
