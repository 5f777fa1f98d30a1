"""Says who is asking: a key or a token against the snapshot, in microseconds, nobody else asked.

The tenant comes from the credential and from nothing else in the request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from polyolo import tokens
from polyolo.errors import (
    ForbiddenError,
    InsufficientScopeError,
    InvalidTokenError,
    UnauthenticatedError,
)
from polyolo.gateway.source import Address, Networks, within
from polyolo.gateway.tokens import TokenBook
from polyolo.permissions import allowed
from polyolo.types import KeyEntry, Principal, TenantRoute, TenantState

_KEY = re.compile(rb"pk_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64  # compared against when there is no such key, so that both take the same time

DETECT = "detect"
"""The action of a request for detections."""


def presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the credential in a request's headers (ASGI, names in lower case).

    Raises UnauthenticatedError for none, and for two that differ.
    """
    credential: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, offered = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise UnauthenticatedError("the Authorization header must be: Bearer <API key>")
            offered = offered.strip()
        elif name == b"x-api-key":
            offered = value.strip()
        else:
            continue
        if credential is not None and credential != offered:
            raise UnauthenticatedError("the request carries two different credentials; send one")
        credential = offered
    if credential is None:
        raise UnauthenticatedError(
            "no credential: send your API key as Authorization: Bearer <API key> or as X-API-Key"
        )
    return credential


def authenticate(
    credential: bytes, keys: Mapping[str, KeyEntry], book: TokenBook, now: float
) -> Principal:
    """Return who presents `credential`.

    keys: the snapshot's keys by id. book: its access tokens. now: unix seconds. Raises
    UnauthenticatedError for one that is malformed, unknown, revoked or expired.
    """
    shape = _KEY.fullmatch(credential)
    if shape is None:
        if tokens.looks_like_one(credential):
            return book.principal(credential, now)
        raise UnauthenticatedError(
            "this is no API key and no access token; a key looks like pk_<id>_<secret>"
        )
    entry = keys.get(shape[1].decode())
    digest = hashlib.sha256(credential).hexdigest()
    same = hmac.compare_digest(digest, _NOBODY if entry is None else entry.digest)
    if entry is None or not same:
        raise UnauthenticatedError("this API key is unknown or was revoked")
    if entry.expires_at is not None and entry.expires_at <= now:
        raise UnauthenticatedError("this API key has expired; make a new one")
    return Principal(kind="key", id=entry.id, tenant=entry.tenant, scopes=entry.scopes)


def authorise(
    principal: Principal,
    tenants: Mapping[str, TenantRoute],
    *,
    ranges: Networks = (),
    source: Address | None = None,
) -> TenantRoute:
    """Return the route of the principal's own tenant.

    tenants: the snapshot's routes by tenant id. ranges: networks that the credential is bound to,
    if any. source: where the request came from. Raises ForbiddenError if the tenant is suspended,
    the scope is lacking or the source lies elsewhere, UnauthenticatedError if the tenant is gone.
    """
    is_key = principal.kind == "key"
    route = tenants.get(principal.tenant or "")
    if route is None:
        if is_key:
            raise UnauthenticatedError("this API key is unknown or was revoked")
        raise InvalidTokenError("this access token was revoked; get a new one")
    may, reason = allowed(principal, DETECT, route.tenant, state=route.state)
    if not may:
        lacks = not is_key and route.state is TenantState.ACTIVE
        raise (InsufficientScopeError if lacks else ForbiddenError)(reason)
    if ranges and not within(source, ranges):
        raise ForbiddenError("this API key may not be used from where this request comes")
    return route
