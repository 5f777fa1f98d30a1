"""Access tokens at a gateway: the good one, and every known way to forge or to stretch one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from polyolo import tokens
from polyolo.errors import (
    ForbiddenError,
    InsufficientScopeError,
    InvalidTokenError,
    UnauthenticatedError,
)
from polyolo.gateway.auth import authenticate, authorise
from polyolo.gateway.tokens import TokenBook
from polyolo.tokens import Claims
from polyolo.types import (
    ClientEntry,
    Phase,
    Plan,
    Principal,
    Snapshot,
    TenantRoute,
    TenantState,
    TokenRules,
)

NOW = 1_700_000_000.0
URL = "https://yolo.example"
KEY = ECKey.generate_key("P-256")
OTHER = ECKey.generate_key("P-256")
KID = KEY.thumbprint()
PUBLIC = {**KEY.as_dict(private=False), "kid": KID}
RULES = TokenRules(issuer=URL, audience=URL, keys=(PUBLIC,))
CLIENT = ClientEntry(id="oc_abcdefghijkl", tenant="t_1", scopes=("detect", "models:read"))
ROUTE = TenantRoute(
    tenant="t_1", name="a", state=TenantState.ACTIVE, plan=Plan(name="p"), phase=Phase.READY
)
CLAIMS = {
    "iss": URL,
    "aud": URL,
    "sub": CLIENT.id,
    "client_id": CLIENT.id,
    "tenant": "t_1",
    "scope": "detect models:read",
    "jti": "token-1",
    "iat": int(NOW),
    "nbf": int(NOW),
    "exp": int(NOW) + 900,
}
HEADER = {"alg": "ES256", "typ": tokens.TYPE, "kid": KID}


def snapshot(rules: TokenRules | None = RULES, clients=(CLIENT,)) -> Snapshot:
    return Snapshot(revision=1, tenants=(ROUTE,), keys=(), clients=clients, tokens=rules)


def book(**changes) -> TokenBook:
    made = TokenBook()
    made.swap(snapshot(**changes))
    return made


def made(key=KEY, header=(), algorithm="ES256", **claims) -> bytes:
    said = {k: v for k, v in (CLAIMS | claims).items() if v is not None}
    head = {k: v for k, v in (HEADER | dict(header)).items() if v is not None}
    registry = jws.JWSRegistry(strict_check_header=False)
    return jwt.encode(head, said, key, [algorithm], registry, default_type=None).encode()


def b64(value: bytes) -> bytes:
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def by_hand(header: dict, signature: bytes = b"", claims: dict = CLAIMS) -> bytes:
    parts = [b64(json.dumps(part).encode()) for part in (header, claims)]
    return b".".join([*parts, b64(signature)])


def hmac_of_public_key(public: bytes) -> bytes:
    token = by_hand(HEADER | {"alg": "HS256"}).rpartition(b".")[0]
    return token + b"." + b64(hmac.digest(public, token, "sha256"))


def test_a_good_token_says_who_is_asking():
    """Its client is the principal, with the tenant and scopes that were signed."""
    wanted = Principal(kind="token", id=CLIENT.id, tenant="t_1", scopes=("detect", "models:read"))
    known = book()
    assert authenticate(made(), {}, known, NOW) == wanted
    assert authenticate(made(), {}, known, NOW) == wanted
    assert authorise(wanted, {"t_1": ROUTE}) is ROUTE


def test_what_control_signs_a_gateway_accepts():
    """One module writes and judges tokens: what `sign` makes is good."""
    claims = Claims(
        id="j",
        client=CLIENT.id,
        tenant="t_1",
        scopes=("detect",),
        issued_at=int(NOW),
        expires_at=int(NOW) + 900,
    )
    token = tokens.sign(claims, RULES, KID, KEY).encode()
    assert tokens.judge(token, RULES, tokens.public_keys(RULES), NOW) == claims
    assert book().principal(token, NOW).scopes == ("detect",)


RSA = RSAKey.generate_key(2048, auto_kid=True)
ATTACKS = {
    "alg none": by_hand(HEADER | {"alg": "none"}),
    "alg None": by_hand(HEADER | {"alg": "None"}),
    "alg none, signed": by_hand(HEADER | {"alg": "none"}, b"x" * 64),
    "no signature": made().rpartition(b".")[0] + b".",
    "public JWK as HMAC secret": hmac_of_public_key(json.dumps(PUBLIC).encode()),
    "public PEM as HMAC secret": hmac_of_public_key(KEY.as_pem(private=False)),
    "another HMAC secret": made(OctKey.generate_key(256), {"alg": "HS256"}, "HS256"),
    "RS256 under our key id": made(RSA, {"alg": "RS256"}, "RS256"),
    "unknown key id": made(OTHER, {"kid": OTHER.thumbprint()}),
    "no key id": made(header={"kid": None}),
    "another key under our key id": made(OTHER),
    "its own key in jwk": made(OTHER, {"jwk": OTHER.as_dict(private=False)}),
    "its own key in jku": made(OTHER, {"jku": "https://evil.example/jwks.json"}),
    "its own key in x5u": made(OTHER, {"x5u": "https://evil.example/cert.pem"}),
    "our key, but a jku besides": made(header={"jku": "https://evil.example/jwks.json"}),
    "key id as a path": made(OTHER, {"kid": "../../dev/null"}),
    "not an access token": made(header={"typ": "JWT"}),
    "no type": made(header={"typ": None}),
    "critical extension": by_hand(HEADER | {"crit": ["exp"]}, b"x" * 64),
    "another audience": made(aud="https://other.example"),
    "no audience": made(aud=None),
    "another issuer": made(iss="https://other.example"),
    "no issuer": made(iss=None),
    "no expiry": made(exp=None),
    "expiry as text": made(exp="never"),
    "endless expiry": made(exp=float("inf")),
    "expired": made(exp=int(NOW) - tokens.LEEWAY_S),
    "not yet valid": made(nbf=int(NOW) + tokens.LEEWAY_S + 1),
    "issued in the future": made(iat=int(NOW) + tokens.LEEWAY_S + 1),
    "no client": made(sub=None),
    "client as a number": made(sub=7),
    "no tenant": made(tenant=None),
    "tenant as a list": made(tenant=["t_1"]),
    "another tenant": made(tenant="t_2"),
    "scope as a list": made(scope=["detect"]),
    "no id": made(jti=None),
    "an unknown client": made(sub="oc_lkjihgfedcba"),
    "truncated": made()[:-20],
    "truncated head": made()[10:],
    "longer": made() + b"AAAA",
    "two parts": made().rpartition(b".")[0],
    "four parts": made() + b".x",
    "huge": made(scope="detect " * 1000),
    "huge and empty": b"eyJ" + b"A" * 100_000 + b"..",
    "deep": b".".join([b64(json.dumps(HEADER).encode()), b64(b"[" * 900), b"x"]),
    "no JSON": b"eyJub3Q.eyJub3Q.AAAA",
    "not base64": b"eyJ!!.eyJ??.%%",
    "not ASCII": b"eyJ\xff\xfe.eyJ\xff.\xff",
}


@pytest.mark.parametrize("token", ATTACKS.values(), ids=ATTACKS.keys())
def test_token_attacks_fail(token: bytes):
    """Each is refused, at first and again, with the challenge of RFC 6750 and no detail to use."""
    known = book()
    for _ in range(2):
        with pytest.raises(InvalidTokenError) as caught:
            authenticate(token, {}, known, NOW)
        assert caught.value.status == 401
        assert caught.value.headers() == {"www-authenticate": 'Bearer error="invalid_token"'}


@pytest.mark.parametrize("part", [0, 1, 2])
def test_no_changed_byte_goes_unnoticed(part: int):
    """Head, claims and signature: another character anywhere spoils the token."""
    good, known = made(), book()
    known.principal(good, NOW)
    start = sum(len(p) + 1 for p in good.split(b".")[:part])
    # The last character of a base64 text may carry unused bits: two texts, the same bytes.
    for at in range(start, start + len(good.split(b".")[part]) - 1, 3):
        other = b"B" if good[at : at + 1] != b"B" else b"C"
        with pytest.raises(InvalidTokenError):
            known.principal(good[:at] + other + good[at + 1 :], NOW)


@given(st.binary(max_size=200), st.sampled_from([b"", b"eyJ", b"..", made()[:100]]))
def test_no_other_bytes_get_in(value: bytes, prefix: bytes):
    """Whatever is sent but a signed token is refused, never an error of another kind."""
    with pytest.raises(UnauthenticatedError):
        authenticate(prefix + value, {}, book(), NOW)


def test_a_token_ends_when_it_expires_even_if_it_was_seen_before():
    """The clock is looked at in every request, whatever is remembered."""
    known, token = book(), made()
    end = CLAIMS["exp"] + tokens.LEEWAY_S
    known.principal(token, end - 1)
    for _ in range(2):
        with pytest.raises(InvalidTokenError, match="expired"):
            known.principal(token, end)


def test_a_revoked_token_and_a_deleted_client_stop_with_the_next_snapshot():
    """What was good a moment ago, and is remembered, is good no more."""
    known, token, other = book(), made(), made(jti="token-2")
    known.principal(token, NOW)
    known.principal(other, NOW)
    known.swap(snapshot(replace(RULES, revoked=("token-1",))))
    with pytest.raises(InvalidTokenError, match="revoked"):
        known.principal(token, NOW)
    known.principal(other, NOW)
    known.swap(snapshot(clients=()))
    for one in (token, other):
        with pytest.raises(InvalidTokenError, match="revoked"):
            known.principal(one, NOW)
    known.swap(snapshot(None))
    with pytest.raises(InvalidTokenError):
        known.principal(other, NOW)


def test_a_dropped_signing_key_takes_its_tokens_along():
    """A token that was seen under a key is not good once the key is gone."""
    known, token = book(), made()
    known.principal(token, NOW)
    fresh = {**OTHER.as_dict(private=False), "kid": OTHER.thumbprint()}
    known.swap(snapshot(replace(RULES, keys=(PUBLIC, fresh))))
    known.principal(token, NOW)  # rotation: the old key verifies until its tokens are over
    known.principal(made(OTHER, {"kid": OTHER.thumbprint()}), NOW)
    known.swap(snapshot(replace(RULES, keys=(fresh,))))
    with pytest.raises(InvalidTokenError):
        known.principal(token, NOW)


def test_a_token_may_no_more_than_its_client_may_now():
    """Scopes that the client lost, or never had, count for nothing; without detect it is 403."""
    known = book(clients=(replace(CLIENT, scopes=("models:read",)),))
    who = known.principal(made(scope="detect models:read keys:write"), NOW)
    assert who.scopes == ("models:read",)
    with pytest.raises(InsufficientScopeError) as caught:
        authorise(who, {"t_1": ROUTE})
    assert caught.value.status == 403
    assert 'error="insufficient_scope"' in caught.value.headers()["www-authenticate"]


def test_a_token_of_a_deleted_or_suspended_tenant():
    """A tenant that is gone is 401 as an unknown token is, a suspended one 403."""
    who = book().principal(made(), NOW)
    with pytest.raises(InvalidTokenError):
        authorise(who, {})
    with pytest.raises(ForbiddenError, match="suspended"):
        authorise(who, {"t_1": replace(ROUTE, state=TenantState.SUSPENDED)})


def test_what_is_remembered_is_bounded():
    """Forgotten tokens are checked anew; memory does not grow with the tokens seen."""
    known = TokenBook(remembered=2)
    known.swap(snapshot())
    many = [made(jti=f"j{n}") for n in range(4)]
    for token in [*many, *many]:
        known.principal(token, NOW)
    assert len(known._seen) == 2
    assert hashlib.sha256(many[3]).digest() in known._seen
