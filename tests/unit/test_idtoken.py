"""ID tokens: good ones of every asymmetric kind, and every known way to forge or to bend one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from polyolo.control import idtoken
from polyolo.control.idtoken import RefusedError, Rules, UnknownKeyError, judge

NOW = 1_700_000_000.0
ISSUER, CLIENT, NONCE, ACCESS = "https://login.example", "polyolo", "n" * 43, "an access token"
KEYS = {
    "RS256": RSAKey.generate_key(2048),
    "PS384": RSAKey.generate_key(2048),
    "ES256": ECKey.generate_key("P-256"),
    "ES512": ECKey.generate_key("P-521"),
    "Ed25519": OKPKey.generate_key("Ed25519"),
}
LISTED = [
    {**key.as_dict(private=False), "kid": name, "use": "sig", "alg": name}
    for name, key in KEYS.items()
]
RULES = Rules(issuer=ISSUER, client_id=CLIENT, audiences=(), algorithms=tuple(KEYS), nonce=NONCE)
CLAIMS = {
    "iss": ISSUER,
    "sub": "ann",
    "aud": CLIENT,
    "iat": int(NOW),
    "exp": int(NOW) + 300,
    "nonce": NONCE,
    "email": "Ann@Example.com",
    "email_verified": True,
}


def token(algorithm: str = "ES256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    """Return a token by the key of that algorithm; a claim that is None is left out."""
    said = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    head = {"alg": algorithm, "kid": algorithm, **(header or {})}
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    return jwt.encode(head, said, KEYS[algorithm], [algorithm], registry)


def judged(text: object, rules: Rules = RULES, keys: Any = LISTED, now: float = NOW) -> Any:
    return judge(text, keys, rules, now, ACCESS)


def half(algorithm: str) -> str:
    digest = hashlib.new(algorithm, ACCESS.encode()).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("algorithm", "hashed"),
    [(name, "sha512" if name == "Ed25519" else f"sha{name[2:]}") for name in KEYS],
)
def test_a_good_token_of_every_kind(algorithm, hashed):
    """Signature, claims and the access token's half hash, by the algorithm of the token."""
    claims = judged(token(algorithm, at_hash=half(hashed)))
    assert (claims.issuer, claims.subject) == (ISSUER, "ann")
    assert (claims.email, claims.email_verified) == ("ann@example.com", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [CLIENT], "azp": CLIENT},
        {"iat": int(NOW) + 59},  # the provider's clock is ahead
        {"exp": int(NOW) - 59},
        {"nbf": int(NOW) + 59},
        {"sub": "a" * 255},
        {"groups": ["a"] * 400},
    ],
)
def test_what_is_within_bounds_is_taken(changes):
    """A minute of clock skew, one audience in a list, claims that are not ours."""
    assert judged(token(**changes)).subject


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 256},
        {"sub": "änn"},
        {"aud": "another"},
        {"aud": None},
        {"aud": []},
        {"aud": [CLIENT, "another"], "azp": CLIENT},
        {"aud": {"client": CLIENT}},
        {"azp": "another"},
        {"azp": ""},
        {"exp": int(NOW) - 61},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": True},
        {"iat": None},
        {"iat": int(NOW) + 61},
        {"iat": int(NOW) - 700},
        {"iat": "now"},
        {"nbf": int(NOW) + 61},
        {"nonce": None},
        {"nonce": "m" * 43},
        {"nonce": [NONCE]},
        {"nonce": ""},
        {"at_hash": half("sha384")},
        {"at_hash": ""},
        {"at_hash": 1},
    ],
)
def test_a_claim_that_is_not_right_is_refused(changes):
    """Each by itself, in a token that is signed as it should be."""
    with pytest.raises(RefusedError):
        judged(token(**changes))


def test_allowed_audiences_and_the_authorized_party():
    """With several audiences the token must say that it was issued to us."""
    rules = replace(RULES, audiences=("project",))
    both = ["project", CLIENT]
    assert judged(token(aud=both, azp=CLIENT), rules)
    for changes in ({"aud": both}, {"aud": both, "azp": "project"}, {"aud": ["project"]}):
        with pytest.raises(RefusedError):
            judged(token(**changes), rules)


@pytest.mark.parametrize(
    ("claim", "email", "verified"),
    [
        ({"email": None}, None, True),
        ({"email": ["a@b.c"]}, None, True),
        ({"email": "no address"}, None, True),
        ({"email_verified": "true"}, "ann@example.com", True),
        ({"email_verified": "yes"}, "ann@example.com", False),
        ({"email_verified": 1}, "ann@example.com", False),
        ({"email_verified": None}, "ann@example.com", False),
    ],
)
def test_what_is_told_of_the_address(claim, email, verified):
    """Anything but an address is none; anything but true is not verified."""
    claims = judged(token(**claim))
    assert (claims.email, claims.email_verified) == (email, verified)


def compact(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def forged_by_public_key(known: bytes) -> str:
    """Return a token signed by HMAC with what everybody knows (RS256 taken for HS256)."""
    unsigned = compact({"alg": "HS256", "kid": "RS256"}, CLAIMS).rpartition(".")[0]
    signature = hmac.digest(known, unsigned.encode(), "sha256")
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


ATTACKS = {
    "unsigned": lambda: compact({"alg": "none"}, CLAIMS),
    "unsigned, other case": lambda: compact({"alg": "nOnE", "kid": "ES256"}, CLAIMS),
    "without an algorithm": lambda: compact({"kid": "ES256"}, CLAIMS),
    "signature cut off": lambda: token().rpartition(".")[0] + ".",
    "HMAC with the public key, PEM": lambda: forged_by_public_key(
        KEYS["RS256"].as_pem(private=False)
    ),
    "HMAC with the public key, JWK": lambda: forged_by_public_key(json.dumps(LISTED[0]).encode()),
    "another's key": lambda: jwt.encode(
        {"alg": "ES256", "kid": "ES256"}, CLAIMS, ECKey.generate_key("P-256"), ["ES256"]
    ),
    "access token": lambda: token(header={"typ": "at+jwt"}),
    "logout token": lambda: token(header={"typ": "logout+jwt"}),
    "typ that is a list": lambda: compact({"alg": "ES256", "typ": ["JWT"]}, CLAIMS),
    "algorithm that is a list": lambda: compact({"alg": ["ES256"]}, CLAIMS),
    "payload that is a list": lambda: compact({"alg": "ES256", "kid": "ES256"}, [CLAIMS]),
    "encrypted": lambda: "a.b.c.d.e",
    "empty": lambda: "",
    "none": lambda: None,
    "bytes": lambda: token().encode(),
    "endless": lambda: token(groups=["x" * idtoken.LONGEST]),
    "deep": lambda: compact({"alg": "ES256", "kid": "ES256"}, {}).replace(
        "e30", base64.urlsafe_b64encode(b"[" * 9000).decode()
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(attack):
    """No algorithm but an announced asymmetric one, no key but a listed one."""
    with pytest.raises(RefusedError):
        judged(ATTACKS[attack](), replace(RULES, algorithms=(*KEYS, "HS256", "none")))


def test_a_key_that_the_token_brings_along_is_not_looked_at():
    """`jwk` and `jku` in the header: the signature fits them, and is refused all the same."""
    own = ECKey.generate_key("P-256")
    brought = {"jwk": own.as_dict(private=False), "jku": "https://evil.example/jwks"}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    head = {"alg": "ES256", "kid": "ES256", **brought}
    with pytest.raises(RefusedError):
        judged(jwt.encode(head, CLAIMS, own, ["ES256"], registry))


def signed(header: dict[str, Any], key: Any = KEYS["ES256"]) -> str:
    """Return a token with that header, signed whatever it says."""
    unsigned = compact({"alg": "ES256", "kid": "ES256", **header}, CLAIMS).rpartition(".")[0]
    method = jws.JWSRegistry.algorithms[header.get("alg", "ES256")]
    signature = method.sign(unsigned.encode(), key)
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "header", [{"crit": ["x"], "x": 1}, {"crit": ["b64"], "b64": False}, {"b64": False}]
)
def test_a_header_that_changes_what_is_signed_is_refused(header):
    """Extensions that an ID token does not have; without them the same token is good."""
    assert judged(signed({}))
    with pytest.raises(RefusedError):
        judged(signed(header))


def test_only_what_the_provider_announces_is_taken():
    """A good signature by an algorithm that is not announced, or for another key, is refused."""
    assert judged(token("RS256"))
    with pytest.raises(RefusedError):
        judged(token("RS256"), replace(RULES, algorithms=("ES256",)))
    other = jwt.encode({"alg": "RS384", "kid": "RS256"}, CLAIMS, KEYS["RS256"], ["RS384"])
    with pytest.raises(UnknownKeyError):  # the key is for RS256 only
        judged(other, replace(RULES, algorithms=("RS256", "RS384")))


def test_which_key_it_is():
    """By key id; without one, the only key that fits. Keys for encryption and broken ones: none."""
    bare = {name: value for name, value in LISTED[2].items() if name not in ("kid", "use", "alg")}
    nameless = jwt.encode({"alg": "ES256"}, CLAIMS, KEYS["ES256"], ["ES256"])
    assert judged(nameless, keys=[bare])
    assert judged(nameless, keys=[bare, LISTED[0], "nonsense", None, {"kty": "oct", "k": "AAAA"}])
    for keys in ([], [bare, dict(bare)], [{**bare, "use": "enc"}], [LISTED[0]]):
        with pytest.raises(UnknownKeyError):
            judged(nameless, keys=keys)
    with pytest.raises(UnknownKeyError):
        judged(token(header={"kid": "another"}))
    with pytest.raises(RefusedError, match="broken"):
        judged(token(), keys=[{**LISTED[2], "x": "!!"}])
    with pytest.raises(RefusedError):
        judged(token(), keys=[{**LISTED[3], "kid": "ES256", "alg": "ES256"}])  # another curve


def test_a_short_key_is_refused():
    """RSA keys have at least 2048 bits (RFC 7518 section 3.3), however good the signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of the library, which only warns
        for bits, good in ((1024, False), (2048, True)):
            key = RSAKey.import_key(rsa.generate_private_key(65537, bits))
            listed = {**key.as_dict(private=False), "kid": "RS256"}
            text = signed({"alg": "RS256", "kid": "RS256"}, key)
            if good:
                assert judged(text, keys=[listed])
            else:
                with pytest.raises(RefusedError, match="bits"):
                    judged(text, keys=[listed])


@given(st.data())
def test_a_token_that_was_changed_anywhere_is_refused(data):
    """Any character of header, payload or signature replaced, dropped or doubled."""
    text = GOOD
    at = data.draw(st.integers(0, len(text) - 1))
    instead = data.draw(st.text(st.sampled_from("aZ09-_.= é\0"), max_size=3))
    changed = text[:at] + instead + text[at + 1 :]
    if changed == text or _same_bytes(changed, text):
        return
    with pytest.raises(RefusedError):
        judged(changed)


GOOD = token()


def _same_bytes(one: str, other: str) -> bool:
    """Say whether two tokens differ in the unused bits of base64 only, or in nothing."""

    def parts(text: str) -> list[bytes] | None:
        try:
            return [base64.urlsafe_b64decode(p + "=" * (-len(p) % 4)) for p in text.split(".")]
        except ValueError:
            return None

    return parts(one) == parts(other)
