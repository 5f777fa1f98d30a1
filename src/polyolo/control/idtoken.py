"""ID tokens of an external provider: the one way to judge one (OpenID Connect Core 3.1.3.7).

The algorithm is the provider's announced ones that are asymmetric, never the token's to say; keys
come from the provider's own list. A key, or the address of one, that a token brings along is not
looked at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from polyolo.control import emails
from polyolo.errors import InvalidValueError

LEEWAY_S = 60
"""Seconds by which the provider's clock may differ from ours."""
OLDEST_S = 600
"""Seconds since a token was issued: it comes fresh from the provider."""
LONGEST = 16 << 10
"""Characters of a token; groups and pictures make some of them long."""

ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}
"""What a token may be signed with, and the type of key that it takes: asymmetric ones only."""

_TYPES = (None, "JWT", "jwt")
"""The header's `typ`: what a provider signs for another purpose (`at+jwt`) is no ID token."""
_RSA_BITS = 2048  # RFC 7518 section 3.3
_NEEDED: jwt.ClaimsOption = {"essential": True}


class RefusedError(Exception):
    """The token is not to be believed; says why, for the operator."""


class UnknownKeyError(RefusedError):
    """The token names a key that is not in the list: it may be a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What makes a token good."""

    issuer: str
    client_id: str
    audiences: tuple[str, ...]
    """Whom else it may be for."""
    algorithms: tuple[str, ...]
    """As the provider announces them."""
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityClaims:
    """Whom the provider vouches for."""

    issuer: str
    subject: str
    """Never given to another person by this issuer; an e-mail address may be."""
    email: str | None = None
    """Normal; None when the provider tells none."""
    email_verified: bool = False

    def with_email(self, said: Mapping[str, Any]) -> IdentityClaims:
        """Return the claims with what `said` tells of the e-mail address."""
        try:
            email = emails.normal(said["email"]) if isinstance(said.get("email"), str) else None
        except InvalidValueError:
            email = None
        verified = said.get("email_verified")
        return IdentityClaims(
            issuer=self.issuer,
            subject=self.subject,
            email=email,
            email_verified=verified is True or verified == "true",  # some send a text
        )


def judge(
    token: object, keys: Sequence[Any], rules: Rules, now: float, access_token: str
) -> IdentityClaims:
    """Return whom a token vouches for if its signature, times and addressees are right.

    keys: the provider's JWKs, as they came. now: unix seconds. access_token: that came with it.
    Raises RefusedError, and UnknownKeyError when another list of keys may help.
    """
    if not isinstance(token, str) or not token.isascii() or len(token) > LONGEST:
        raise RefusedError("there is no ID token")
    allowed = [name for name in rules.algorithms if name in ALGORITHMS]
    header: dict[str, Any] = {}

    def named(signed: Any) -> Any:
        header.update(signed.headers())
        if header.get("typ") not in _TYPES:
            raise RefusedError("it was made for another purpose")
        return _key(keys, header)

    try:
        said = jwt.decode(
            token, named, allowed, JWSRegistry(algorithms=allowed, strict_check_header=False)
        ).claims
        jwt.JWTClaimsRegistry(
            now=int(now),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": rules.issuer},
            aud=_NEEDED,
            sub=_NEEDED,
            exp=_NEEDED,
            iat=_NEEDED,
        ).validate(said)
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise RefusedError(f"it does not verify ({type(error).__name__})") from None
    _addressed(said, rules)
    _fresh(said, rules.nonce, now)
    _of_access_token(said, header["alg"], access_token)
    subject = said["sub"]
    if not subject or not subject.isascii() or len(subject) > 255:
        raise RefusedError("its subject is not one")
    return IdentityClaims(issuer=rules.issuer, subject=subject).with_email(said)


def _key(keys: Sequence[Any], header: Mapping[str, Any]) -> Any:
    """Return the provider's key for a token's header; one without a key id needs a sole key."""
    algorithm, kid = header["alg"], header.get("kid")
    fitting = [
        key
        for key in keys
        if isinstance(key, dict)
        and key.get("kty") == ALGORITHMS[algorithm]
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (kid is None or key.get("kid") == kid)
    ]
    if len(fitting) != 1:
        raise UnknownKeyError("it names a key that the provider does not list")
    try:
        key = jwk.import_key(fitting[0])
        public = key.public_key
    except (JoseError, ValueError, TypeError):
        raise RefusedError("the provider lists a broken key") from None
    if isinstance(public, RSAPublicKey) and public.key_size < _RSA_BITS:
        raise RefusedError(f"the provider's key has fewer than {_RSA_BITS} bits")
    return key


def _addressed(said: Mapping[str, Any], rules: Rules) -> None:
    audience = [said["aud"]] if isinstance(said["aud"], str) else said["aud"]
    party = said.get("azp")
    if rules.client_id not in audience:
        raise RefusedError("it is for another client")
    if set(audience) - {rules.client_id, *rules.audiences}:
        raise RefusedError("it is for others too, who are not among the allowed audiences")
    if party != rules.client_id and (party is not None or len(audience) > 1):
        raise RefusedError("it was issued to another client")


def _fresh(said: Mapping[str, Any], nonce: str, now: float) -> None:
    if said["iat"] < now - OLDEST_S - LEEWAY_S:
        raise RefusedError("it was issued long ago")
    given = said.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise RefusedError("it was made for another sign-in: its nonce is not ours")


def _of_access_token(said: Mapping[str, Any], algorithm: str, access_token: str) -> None:
    given = said.get("at_hash")
    if given is None:
        return
    bits = "512" if ALGORITHMS[algorithm] == "OKP" else algorithm[-3:]
    whole = hashlib.new(f"sha{bits}", access_token.encode()).digest()
    half = base64.urlsafe_b64encode(whole[: len(whole) // 2]).rstrip(b"=")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), half):
        raise RefusedError("it came with another access token")
