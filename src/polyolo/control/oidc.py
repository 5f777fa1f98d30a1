"""Sign-in through an OpenID Connect provider: the relying party's side of the code flow.

The browser is sent to the provider with state, nonce and a PKCE challenge, and comes back with a
code, which is exchanged for an ID token, server to server. What the provider says of itself and
its keys are kept for a while.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote_plus, urlencode, urlunsplit

from polyolo import telemetry
from polyolo.control import idtoken
from polyolo.control.idtoken import IdentityClaims, Rules, UnknownKeyError
from polyolo.control.outbound import Outbound, OutboundError
from polyolo.control.provider import IdentityProvider, split
from polyolo.errors import ForbiddenError, NotReadyError

KEPT_S = 3600.0
"""Seconds that the provider's description and keys are kept."""
FRESH_S = 30.0
"""Seconds that the keys are kept when a token names another one: it may be a new key, or none."""
PAUSE_S = 5.0
"""Seconds after a failure in which nothing is asked again: whoever comes is told at once."""

_SCOPES = "openid email"
_BASIC, _POST = "client_secret_basic", "client_secret_post"
_USERINFO = "userinfo_endpoint"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationRequest:
    """What binds an answer of the provider to the request that it answers; each is random."""

    state: str
    nonce: str
    verifier: str
    """The secret of which the provider is told the digest (RFC 7636)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    """What the provider says of itself."""

    authorization: str
    token: str
    keys: str
    userinfo: str | None
    algorithms: tuple[str, ...]
    ways: tuple[str, ...]
    """How a client may prove itself."""
    names_itself: bool
    """Whether every answer of its has the parameter `iss` (RFC 9207)."""


class _Kept(Generic[T]):
    """A document of the provider's. Of one event loop."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], age: Callable[[], float]) -> None:
        self._fetch = fetch
        self._age = age
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._at = self._failed_at = float("-inf")

    async def get(self, at_most_s: float = KEPT_S) -> T:
        """Return the document, not older than that; raise NotReadyError when it cannot be had."""
        async with self._lock:
            now = self._age()
            if self._value is not None and now - self._at < at_most_s:
                return self._value
            if now - self._failed_at < PAUSE_S:
                raise _unavailable("it failed just now")
            try:
                self._value, self._at = await self._fetch(), self._age()
            except NotReadyError:
                self._failed_at = self._age()
                raise
            return self._value


class RelyingParty:
    """This platform as a client of its provider. Of one event loop; nothing is asked at start."""

    def __init__(
        self,
        provider: IdentityProvider,
        redirect_uri: str,
        *,
        clock: Callable[[], float],
        outbound: Outbound,
        age: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep its parts. redirect_uri: where the provider sends browsers back to; registered
        there. clock: unix seconds. age: seconds, of a clock that nobody sets."""
        self._provider = provider
        self._redirect_uri = redirect_uri
        self._clock = clock
        self._outbound = outbound
        self._metadata = _Kept(self._describe, age)
        self._keys = _Kept(self._list_keys, age)

    async def authentication_url(self, request: AuthenticationRequest) -> str:
        """Return where to send the browser. Raises NotReadyError."""
        metadata = await self._metadata.get()
        challenge = hashlib.sha256(request.verifier.encode()).digest()
        parts = split(metadata.authorization)
        assert parts is not None  # judged when it came
        asked = {
            "response_type": "code",
            "client_id": self._provider.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": _SCOPES,
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *asked.items()])
        return urlunsplit(parts._replace(query=query))

    async def redeem(
        self, request: AuthenticationRequest, code: str, named: str | None
    ) -> IdentityClaims:
        """Exchange a code for whom the provider vouches for.

        named: the answer's parameter `iss`. Raises ForbiddenError for an answer that is not to be
        believed, NotReadyError when the provider does not answer as it should.
        """
        metadata = await self._metadata.get()
        if named != self._provider.issuer and (named is not None or metadata.names_itself):
            raise ForbiddenError("this answer is not of the sign-in provider; start again")
        said = await self._exchange(metadata, request, code)
        access_token = said.get("access_token")
        if not isinstance(access_token, str) or not access_token.isascii():
            access_token = ""
        claims = await self._judged(metadata, said.get("id_token"), request.nonce, access_token)
        if claims.email is None and metadata.userinfo is not None and access_token:
            told = await self._told_of_user(metadata.userinfo, access_token)
            if told.get("sub") == claims.subject:  # else it may be of another person's token
                claims = claims.with_email(told)
        return claims

    async def _judged(
        self, metadata: _Metadata, token: object, nonce: str, access_token: str
    ) -> IdentityClaims:
        rules = Rules(
            issuer=self._provider.issuer,
            client_id=self._provider.client_id,
            audiences=self._provider.audiences,
            algorithms=metadata.algorithms,
            nonce=nonce,
        )
        now = self._clock()
        keys = await self._keys.get()
        try:
            try:
                return idtoken.judge(token, keys, rules, now, access_token)
            except UnknownKeyError:
                newer = await self._keys.get(FRESH_S)
                return idtoken.judge(token, newer, rules, now, access_token)
        except idtoken.RefusedError as refusal:
            _log().warning("an ID token is refused", reason=str(refusal))
            raise ForbiddenError(
                f"the sign-in provider's ID token is refused: {refusal}; start again, and tell "
                "the platform's operator if it stays so"
            ) from None

    async def _exchange(
        self, metadata: _Metadata, request: AuthenticationRequest, code: str
    ) -> dict[str, Any]:
        provider = self._provider
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": request.verifier,
        }
        headers = {}
        if not provider.client_secret:
            form["client_id"] = provider.client_id
        elif _BASIC in metadata.ways or _POST not in metadata.ways:
            pair = f"{quote_plus(provider.client_id)}:{quote_plus(provider.client_secret)}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": provider.client_id, "client_secret": provider.client_secret}
        status, said = await self._ask("POST", metadata.token, form=form, headers=headers)
        if status == 200:
            return said
        error = said.get("error")
        if status in (400, 401) and error == "invalid_grant":
            raise ForbiddenError(
                "the sign-in provider does not take its code back: it was used already, took too "
                "long, or belongs to another browser; start again"
            )
        if error in ("invalid_client", "unauthorized_client"):
            _log().error("the provider refuses our client id or secret", status=status)
            raise _unavailable("it refuses this platform's client id or secret")
        raise _unavailable(f"its token endpoint answered {status}")

    async def _told_of_user(self, url: str, access_token: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {access_token}"}
        status, said = await self._ask("GET", url, headers=headers)
        return said if status == 200 else {}

    async def _describe(self) -> _Metadata:
        base = self._provider.issuer.rstrip("/")
        status, said = await self._ask("GET", f"{base}/.well-known/openid-configuration")
        if status != 200 or said.get("issuer") != self._provider.issuer:
            _log().error("the provider's issuer is another one", status=status)
            raise _unavailable("it does not describe itself as the issuer that is configured")
        names = ("authorization_endpoint", "token_endpoint", "jwks_uri", _USERINFO)
        urls = {name: said.get(name) for name in names}
        for name, url in urls.items():
            if split(url) is None and not (name == _USERINFO and url is None):
                raise _unavailable(f"its {name} is no https URL")
        return _Metadata(
            authorization=str(urls["authorization_endpoint"]),
            token=str(urls["token_endpoint"]),
            keys=str(urls["jwks_uri"]),
            userinfo=urls[_USERINFO],
            algorithms=_texts(said.get("id_token_signing_alg_values_supported"), "RS256"),
            ways=_texts(said.get("token_endpoint_auth_methods_supported"), _BASIC),
            names_itself=said.get("authorization_response_iss_parameter_supported") is True,
        )

    async def _list_keys(self) -> list[Any]:
        metadata = await self._metadata.get()
        status, said = await self._ask("GET", metadata.keys)
        keys = said.get("keys")
        if status != 200 or not isinstance(keys, list):
            raise _unavailable("it lists no keys")
        return keys

    async def _ask(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any]]:
        try:
            return await self._outbound.ask(method, url, **more)
        except OutboundError as error:
            _log().warning("the provider does not answer", url=url, reason=str(error))
            raise _unavailable(str(error)) from None


def _texts(given: object, default: str) -> tuple[str, ...]:
    """Return a list of the provider's; what it stands for when there is none."""
    if not isinstance(given, list):
        return (default,)
    return tuple(one for one in given if isinstance(one, str))


def _unavailable(reason: str) -> NotReadyError:
    return NotReadyError(
        f"the sign-in provider cannot be used now: {reason}; whoever is signed in stays so",
        retry_after=PAUSE_S,
    )


def _log() -> telemetry.Log:
    return telemetry.logger("oidc")
