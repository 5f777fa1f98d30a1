"""Credentials at the door: tokens, keys bound to networks, and what holds when control is away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from joserfc.jwk import ECKey

from polyolo import tokens
from polyolo.errors import InvalidValueError
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import checked
from polyolo.tokens import Claims
from polyolo.types import ClientEntry, Snapshot, TokenRules
from tests.integration.gateway_parts import bearer, entry, platform, until

URL = "https://yolo.example"
KEY = ECKey.generate_key("P-256")
KID = KEY.thumbprint()
RULES = TokenRules(issuer=URL, audience=URL, keys=({**KEY.as_dict(private=False), "kid": KID},))
CLIENT = ClientEntry(id="oc_aaaaaaaaaaaa", tenant="t_a", scopes=("detect",))


def token(*scopes: str) -> dict[str, str]:
    now = int(time.time())
    claims = Claims(
        id="j",
        client=CLIENT.id,
        tenant="t_a",
        scopes=scopes or ("detect",),
        issued_at=now,
        expires_at=now + 900,
    )
    return {"authorization": f"Bearer {tokens.sign(claims, RULES, KID, KEY)}"}


async def test_a_key_made_at_another_control_plane_works_at_once():
    """The gateway's own one has not heard of it yet: it is asked before anybody is turned away."""
    async with platform() as made:
        made.publish(keys=[entry("b")])
        await made.revision()
        before = made.control.snapshot
        assert before is not None
        made.control.snapshot = replace(  # nobody is told
            before, revision=before.revision + 1, keys=(entry("a"), entry("b"))
        )
        assert (await made.detect("a")).status_code == 200
        assert made.control.questions == 1
        assert (await made.detect("b")).status_code == 200
        assert made.control.questions == 1  # who is known waits for nothing


async def test_wrong_keys_at_once_share_a_question():
    """However many there are, control has next to nothing to do with them."""
    async with platform() as made:
        wrong = {"authorization": f"Bearer pk_{'z' * 12}_{'A' * 43}"}
        answers = await asyncio.gather(*(made.detect("a", headers=wrong) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {401}
        assert 1 <= made.control.questions <= 10


async def test_a_token_detects_until_it_is_revoked_and_its_use_is_recorded():
    """A gateway checks it by itself; a revocation is in force with the next snapshot."""
    async with platform() as made:
        made.publish(clients=(CLIENT,), tokens=RULES)
        await made.revision()
        good = token()
        answer = await made.detect("a", headers=good)
        assert (answer.status_code, answer.json()["from"]) == (200, "a")
        assert (await made.detect("b", headers={"x-api-key": "x"} | good)).status_code == 401
        in_vain = await made.detect("a", headers=token("models:read"))
        assert in_vain.status_code == 403
        assert in_vain.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
        made.publish(clients=(CLIENT,), tokens=replace(RULES, revoked=("j",)))
        await made.revision()
        gone = await made.detect("a", headers=good)
        assert gone.status_code == 401
        assert gone.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        runtime_saw = made.runtimes["a"].requests[0]
        assert not runtime_saw.values("authorization")
        await until(lambda: made.control.usage)
        (record,) = made.control.usage.values()
        assert (record.tenant, record.principal) == ("t_a", f"token:{CLIENT.id}")
        assert record.source == "127.0.0.1"


async def test_a_forwarded_address_counts_only_from_a_trusted_proxy():
    """A spoofed X-Forwarded-For neither opens a bound key nor reaches usage or control."""
    bound = [entry("a", sources=("203.0.113.0/24",)), entry("b")]
    spoofed = {
        "x-forwarded-for": "203.0.113.7",
        "forwarded": "for=203.0.113.7",
        "polyolo-client-address": "203.0.113.7",
    }
    async with platform() as made:
        made.publish(keys=bound)
        await made.revision()
        assert (await made.detect("a", headers=spoofed)).status_code == 403
        assert (await made.detect("b", headers=spoofed)).status_code == 200
        await made.client.get("/api/v1/tenants/me", headers=bearer("b") | spoofed)
        await until(lambda: made.control.usage)
        assert {record.source for record in made.control.usage.values()} == {"127.0.0.1"}
        (seen,) = [one for one in made.control.requests if one.target.startswith("/api")]
        assert seen.values("polyolo-client-address") == ["127.0.0.1"]
        assert not seen.values("x-forwarded-for") + seen.values("forwarded")
    async with platform(trusted_proxies=("127.0.0.0/8",)) as made:
        made.publish(keys=bound)
        await made.revision()
        assert (await made.detect("a", headers=spoofed)).status_code == 200
        outside = {"x-forwarded-for": "203.0.113.7, 198.51.100.1"}
        assert (await made.detect("a", headers=outside)).status_code == 403
        await made.client.get("/api/v1/tenants/me", headers=bearer("b") | outside)
        (seen,) = [one for one in made.control.requests if one.target.startswith("/api")]
        assert seen.values("polyolo-client-address") == ["198.51.100.1"]


def test_after_a_minute_without_control_nothing_is_confirmed():
    """The clock decides, to the second; a word of control, even "nothing new", resets it."""
    now = 100.0
    directory = Directory(Settings(control="unix:/x", token="t"), clock=lambda: now)
    assert "no snapshot" in directory.distrust()
    directory.swap(Snapshot(revision=1, tenants=(), keys=()))
    now = 160.0
    assert directory.distrust() == ""
    now = 160.1
    assert "away too long" in directory.distrust()
    directory.confirm()
    assert directory.distrust() == ""


async def test_a_gateway_that_is_cut_off_fails_closed_and_comes_back():
    """Every credential, good or not, is answered 503 with Retry-After, and /readyz says no.

    The control plane of these tests holds a poll until there is news: to the gateway it is away.
    """
    async with platform(confirm_s=0.3) as made:
        assert (await made.detect("a")).status_code == 200
        async with asyncio.timeout(5):
            while (await made.client.get("/readyz")).status_code != 503:
                await asyncio.sleep(0.02)
        for letter in ("a", "z"):
            answer = await made.detect(letter)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        assert (await made.client.post("/v1/detect", content=b"x")).status_code == 401
        made.publish()
        await made.revision()
        assert (await made.detect("a")).status_code == 200


@pytest.mark.parametrize("network", ["10.0.0.0/33", "proxy.example"])
def test_what_is_no_network_is_refused_at_the_start(network):
    """A typing error must not leave every forwarded address believed, or none."""
    with pytest.raises(InvalidValueError, match="networks"):
        checked([network])
