"""Access tokens: what is in one, and the one way to judge it, for control and for every gateway.

JWTs (RFC 9068) signed with ES256 and nothing else: the algorithm is ours to say, never the
token's. Keys come from `TokenRules` by the token's key id; a key, or the address of one, that a
token brings along is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from polyolo.errors import InvalidTokenError
from polyolo.types import TokenRules

ALGORITHM = "ES256"
"""The only one: short signatures, and every library and key store knows it."""
TYPE = "at+jwt"
"""The header's `typ` (RFC 9068): what we sign for another purpose is no access token."""
LEEWAY_S = 5
"""Seconds by which clocks of control and gateways may differ."""
LONGEST = 2048
"""Characters of a token. Ours have about 600; more is refused before it costs anything."""

_ALLOWED = [ALGORITHM]
_NEEDED: jwt.ClaimsOption = {"essential": True}
_HEADER = frozenset({"alg", "typ", "kid"})
_REGISTRY = JWSRegistry(algorithms=_ALLOWED, strict_check_header=False)
_REFUSED = "this access token is not valid here; get a new one from /oauth2/token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a good token says."""

    id: str
    client: str
    tenant: str
    scopes: tuple[str, ...]
    issued_at: int
    expires_at: int
    """Unix seconds."""


def looks_like_one(credential: bytes) -> bool:
    """Say whether a credential is meant to be an access token; no API key looks like one."""
    return credential.startswith(b"eyJ") or credential.count(b".") == 2


def sign(claims: Claims, rules: TokenRules, kid: str, key: ECKey) -> str:
    """Return the token that says `claims`, signed by the private key whose id is `kid`."""
    said = {
        "iss": rules.issuer,
        "aud": rules.audience,
        "sub": claims.client,
        "client_id": claims.client,
        "tenant": claims.tenant,
        "scope": " ".join(claims.scopes),
        "jti": claims.id,
        "iat": claims.issued_at,
        "nbf": claims.issued_at,
        "exp": claims.expires_at,
    }
    return jwt.encode({"alg": ALGORITHM, "typ": TYPE, "kid": kid}, said, key, _ALLOWED)


def public_keys(rules: TokenRules | None) -> dict[str, ECKey]:
    """Return the keys to judge tokens with, by id."""
    return {} if rules is None else {key["kid"]: ECKey.import_key(dict(key)) for key in rules.keys}


def judge(token: bytes, rules: TokenRules | None, keys: Mapping[str, ECKey], now: float) -> Claims:
    """Return what `token` says if its signature, time, issuer and audience are right.

    keys: `public_keys(rules)`. now: unix seconds. Whether token or client were revoked is for the
    caller to know. Raises InvalidTokenError. About 0.2 ms.
    """
    if rules is None or len(token) > LONGEST:
        raise InvalidTokenError(_REFUSED)

    def named(signed: object) -> ECKey:
        header = signed.headers()  # type: ignore[attr-defined]  # the library's protocol is private
        if header.get("typ") != TYPE or not header.keys() <= _HEADER:
            raise InvalidTokenError(_REFUSED)
        kid = header.get("kid")
        if not isinstance(kid, str) or kid not in keys:
            raise InvalidTokenError(_REFUSED)
        return keys[kid]

    registry = jwt.JWTClaimsRegistry(
        now=int(now),
        leeway=LEEWAY_S,
        iss={"essential": True, "value": rules.issuer},
        aud={"essential": True, "value": rules.audience},
        sub=_NEEDED,
        tenant=_NEEDED,
        jti=_NEEDED,
        iat=_NEEDED,
        nbf=_NEEDED,
        exp=_NEEDED,
    )
    try:
        said = jwt.decode(token, named, _ALLOWED, _REGISTRY).claims
        registry.validate(said)
    except ExpiredTokenError:
        raise InvalidTokenError("this access token has expired; get a new one") from None
    except (JoseError, ValueError, TypeError, RecursionError):
        raise InvalidTokenError(_REFUSED) from None
    client, tenant, scope = said["sub"], said["tenant"], said.get("scope", "")
    if not isinstance(tenant, str) or not isinstance(scope, str):
        raise InvalidTokenError(_REFUSED)
    return Claims(
        id=said["jti"],
        client=client,
        tenant=tenant,
        scopes=tuple(scope.split()),
        issued_at=int(said["iat"]),
        expires_at=int(said["exp"]),
    )


def in_force(claims: Claims, scopes: Sequence[str]) -> tuple[str, ...]:
    """Return what a token may do, of what its client may do now."""
    return tuple(scope for scope in claims.scopes if scope in scopes)
