"""Who is asking, and what they may do: the only place where that is decided."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from polyolo.control import names
from polyolo.errors import ForbiddenError, UnauthenticatedError
from polyolo.permissions import OPERATOR_ONLY, PUBLIC, ROLES, SCOPE_OF, allowed
from polyolo.tokens import looks_like_one
from polyolo.types import Principal

__all__ = [  # the table lives where gateways can import it too
    "GATEWAY",
    "OPERATOR",
    "OPERATOR_ONLY",
    "PUBLIC",
    "ROLES",
    "SCOPE_OF",
    "StoredKey",
    "allowed",
    "presented",
    "principal",
]

OPERATOR = Principal(kind="operator", id="operator")
GATEWAY = Principal(kind="gateway", id="gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """An API key as it is stored, with its tenant's state."""

    id: str
    tenant: str
    digest: str
    scopes: tuple[str, ...]
    expires_at: float | None
    revoked_at: float | None
    tenant_state: str
    sources: tuple[str, ...] = ()
    """Networks that it may be used from; none: from anywhere."""


def presented(headers: Mapping[str, str]) -> str:
    """Return the credential in a request's headers; raise UnauthenticatedError without one."""
    authorization = headers.get("authorization")
    if authorization is not None:
        kind, _, credential = authorization.partition(" ")
        if kind.lower() != "bearer" or not credential.strip():
            raise UnauthenticatedError("the Authorization header must read: Bearer <API key>")
        return credential.strip()
    key = headers.get("x-api-key")
    if not key:
        raise UnauthenticatedError(
            "send your key in the header Authorization: Bearer <key>, or X-API-Key: <key>"
        )
    return key.strip()


def principal(
    credential: str,
    *,
    operator_digest: str,
    find_key: Callable[[str], StoredKey | None],
    now: float,
    judge_token: Callable[[str], tuple[Principal, str]] | None = None,
    source: str = "",
) -> tuple[Principal, str]:
    """Return who presents `credential`, and their tenant's state ("" for the operator).

    operator_digest: sha256 of the operator's key. find_key: by id. now: unix seconds.
    judge_token: says who presents an access token; None: nobody. source: address that the request
    came from. Raises UnauthenticatedError for whatever is not a live credential, without saying
    which of these it is, and ForbiddenError for a key that is bound to other networks.
    """
    digest = names.digest(credential)
    if hmac.compare_digest(digest, operator_digest):
        return OPERATOR, ""
    if judge_token is not None and looks_like_one(credential.encode()):
        return judge_token(credential)
    identifier = names.key_id_of(credential)
    key = find_key(identifier) if identifier else None
    if (
        key is None
        or not hmac.compare_digest(digest, key.digest)
        or key.revoked_at is not None
        or (key.expires_at is not None and key.expires_at <= now)
        or key.tenant_state == "deleting"
    ):
        raise UnauthenticatedError("this key is not known, has expired or was revoked")
    if key.sources and not _within(source, key.sources):
        raise ForbiddenError("this API key may not be used from where this request comes")
    who = Principal(kind="key", id=key.id, tenant=key.tenant, scopes=key.scopes)
    return who, key.tenant_state


def _within(source: str, networks: tuple[str, ...]) -> bool:
    return bool(source) and any(ip_address(source) in ip_network(one) for one in networks)
