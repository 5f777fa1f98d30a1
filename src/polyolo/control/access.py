"""Who is asking, and what they may do: the only place where that is decided."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polyolo.control import names
from polyolo.errors import UnauthenticatedError
from polyolo.types import Principal, TenantState

OPERATOR = Principal(kind="operator", id="operator")
GATEWAY = Principal(kind="gateway", id="gateway")

OPERATOR_ONLY = frozenset({"tenants:create", "tenants:list", "tenants:change", "usage:read-all"})
"""Actions on the platform, or on a tenant as such."""

SCOPE_OF = {
    "tenant:read": None,  # its own name and state: any key
    "keys:read": "keys:write",  # who may list keys may also see which one to revoke
    "keys:write": "keys:write",
    "models:read": "models:read",
    "models:write": "models:write",
    "settings:read": "models:read",
    "settings:write": "settings:write",
    "runtime:read": "models:read",
    "usage:read": "usage:read",
}
"""Actions below a tenant, with the scope that a key needs."""


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
) -> tuple[Principal, str]:
    """Return who presents `credential`, and their tenant's state ("" for the operator).

    operator_digest: sha256 of the operator's key. find_key: by id. now: unix seconds. Raises
    UnauthenticatedError for whatever is not a live key; it does not say which of these it is.
    """
    digest = names.digest(credential)
    if hmac.compare_digest(digest, operator_digest):
        return OPERATOR, ""
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
    who = Principal(kind="key", id=key.id, tenant=key.tenant, scopes=key.scopes)
    return who, key.tenant_state


def allowed(
    who: Principal, action: str, tenant: str | None = None, *, state: str = ""
) -> tuple[bool, str]:
    """Say whether `who` may do `action`, and else why not.

    tenant: the id of the tenant that owns the resource; None for the platform's own. state: of
    the principal's tenant.
    """
    if who.kind == "operator":
        return True, ""
    if who.kind != "key":
        return False, "this credential is for another purpose"
    if action in OPERATOR_ONLY or action not in SCOPE_OF or tenant is None:
        return False, "only the platform's operator may do this"
    if tenant != who.tenant:
        return False, "this belongs to somebody else"
    if state == TenantState.SUSPENDED:
        return False, "this tenant is suspended; ask the platform's operator"
    scope = SCOPE_OF[action]
    if scope is not None and scope not in who.scopes:
        return False, f"this key lacks the scope {scope}"
    return True, ""
