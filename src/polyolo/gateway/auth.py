"""Says who is asking: an API key against the snapshot, in microseconds, without a lookup outside.

The tenant comes from the credential and from nothing else in the request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from polyolo.errors import ForbiddenError, UnauthenticatedError
from polyolo.types import KeyEntry, Principal, TenantRoute, TenantState

_KEY = re.compile(rb"pk_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64  # compared against when there is no such key, so that both take the same time

DETECT = "detect"
"""The scope that a detection needs."""


def authenticate(
    headers: Iterable[tuple[bytes, bytes]], keys: Mapping[str, KeyEntry], now: float
) -> Principal:
    """Return who is asking.

    headers: as in an ASGI scope, names in lower case. keys: the snapshot's keys by id. now: unix
    seconds. Raises UnauthenticatedError for no credential, one that is malformed, unknown,
    revoked or expired, and for two that differ.
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
    shape = _KEY.fullmatch(credential)
    if shape is None:
        raise UnauthenticatedError("this is no API key; one looks like pk_<id>_<secret>")
    entry = keys.get(shape[1].decode())
    digest = hashlib.sha256(credential).hexdigest()
    same = hmac.compare_digest(digest, _NOBODY if entry is None else entry.digest)
    if entry is None or not same:
        raise UnauthenticatedError("this API key is unknown or was revoked")
    if entry.expires_at is not None and entry.expires_at <= now:
        raise UnauthenticatedError("this API key has expired; make a new one")
    return Principal(kind="key", id=entry.id, tenant=entry.tenant, scopes=entry.scopes)


def authorise(principal: Principal, tenants: Mapping[str, TenantRoute]) -> TenantRoute:
    """Return the route of the principal's own tenant.

    tenants: the snapshot's routes by tenant id. Raises ForbiddenError if the tenant is suspended
    or the key lacks the scope, UnauthenticatedError if the tenant is gone.
    """
    route = tenants.get(principal.tenant or "")
    if route is None:
        raise UnauthenticatedError("this API key is unknown or was revoked")
    if route.state is not TenantState.ACTIVE:
        raise ForbiddenError("this tenant is suspended; ask the platform's operator")
    if DETECT not in principal.scopes:
        raise ForbiddenError(f"this API key may not detect: it lacks the scope {DETECT!r}")
    return route
