"""Sign-in through the external provider: what is under way, kept by the browser, sealed."""

from __future__ import annotations

import re
import secrets as random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import msgspec

from polyolo.control import secrets
from polyolo.control.oidc import AuthenticationRequest, RelyingParty
from polyolo.control.outbound import Outbound
from polyolo.control.provider import IdentityProvider
from polyolo.control.secrets import Place, SealedError
from polyolo.errors import InvalidValueError, MalformedRequestError

CALLBACK = "/api/v1/sign-in/oidc/callback"
"""Where the provider sends browsers back to, below the public URL."""
LONGEST_S = 600
"""Seconds that somebody may take at the provider."""
HOME = "/api/v1/sessions/current"
"""Where the browser goes after signing in when it was told nothing."""

_LOCAL = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")  # no backslash: browsers take it for a /
_PLACE = Place(table="cookies", column="sign-in", row="", tenant="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A sign-in that has begun, and what shall come of it."""

    request: AuthenticationRequest
    expires_at: float
    next: str
    """Path of ours to go to at the end."""
    organization: str = ""
    """Of a tenant to be made, if somebody registers."""
    invitation: str = ""
    """Token to be used up."""
    session: str = ""
    """Digest of the session whose user gets one more identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """The parts of it. key: 32 bytes, the same in every control plane of a database."""

    provider: IdentityProvider
    party: RelyingParty
    key: bytes
    clock: Callable[[], float]

    @classmethod
    def of(
        cls,
        provider: IdentityProvider,
        public_url: str,
        key: bytes,
        clock: Callable[[], float],
    ) -> Self:
        """Put the parts together. public_url: where browsers reach the platform."""
        return cls(
            provider=provider,
            party=RelyingParty(
                provider,
                public_url.rstrip("/") + CALLBACK,
                clock=clock,
                outbound=Outbound(),
            ),
            key=key,
            clock=clock,
        )

    def begin(
        self, target: str, *, organization: str = "", invitation: str = "", session: str = ""
    ) -> Pending:
        """Return a new sign-in (see `Pending`). Raises InvalidValueError for a foreign target."""
        if not _LOCAL.fullmatch(target):
            raise InvalidValueError("next: it must be a path of this platform, like /console")
        return Pending(
            request=AuthenticationRequest(
                state=random.token_urlsafe(32),
                nonce=random.token_urlsafe(32),
                verifier=random.token_urlsafe(48),
            ),
            expires_at=self.clock() + LONGEST_S,
            next=target,
            organization=organization,
            invitation=invitation,
            session=session,
        )

    def seal(self, pending: Pending) -> str:
        """Return what the browser's cookie holds."""
        return secrets.seal(self.key, msgspec.json.encode(pending), _PLACE)

    def unseal(self, cookie: str, state: str) -> Pending:
        """Return the sign-in of this browser that an answer of the provider belongs to.

        Raises MalformedRequestError when there is none.
        """
        try:
            pending = msgspec.json.decode(secrets.unseal(self.key, cookie, _PLACE), type=Pending)
        except (SealedError, msgspec.DecodeError):
            pending = None
        if (
            pending is None
            or not random.compare_digest(pending.request.state.encode(), state.encode())
            or pending.expires_at <= self.clock()
        ):
            raise MalformedRequestError(
                "this browser has no such sign-in under way: it took too long, was finished, or "
                "began in another browser or at another address; start again"
            )
        return pending
