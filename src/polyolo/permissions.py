"""Who may do what: the one table, and the one function that reads it, for every process.

An action needs a scope. A key or a token carries the scopes that it was given, a user those of
their role; so one comparison decides for all of them.
"""

from __future__ import annotations

from polyolo.types import Principal, TenantState

PUBLIC = frozenset(
    {
        "register",
        "sign-in",
        "invitations:accept",
        "oauth2:client",
        "oauth2:describe",
        "erasures:read",
    }
)
"""Actions that need no credential; an OAuth client proves itself in what it sends, and who reads
an erasure's certificate by the erasure's number, which is a secret."""

OPERATOR_ONLY = frozenset(
    {
        "tenants:create",
        "tenants:list",
        "tenants:change",
        "limits:write",
        "storage:grant",
        "runtime:schedule",
        "tenants:render",
        "usage:read-all",
        "audit:read-all",
        "erasures:list",
        "registrations:invite",
        "system:read",
        "signing-keys:rotate",
        "releases:change",
    }
)
"""Actions on the platform, or on a tenant as such."""

SCOPE_OF: dict[str, str | None] = {
    "tenant:read": None,  # its own name and state: whoever belongs to it
    "detect": "detect",
    "keys:read": "keys:write",  # who may list keys may also see which one to revoke
    "keys:write": "keys:write",
    "models:read": "models:read",
    "models:write": "models:write",
    "settings:read": "models:read",
    "settings:write": "settings:write",
    "runtime:read": "models:read",
    "runtime:warm": "detect",  # what a detection does, too
    "usage:read": "usage:read",
    "limits:read": "usage:read",
    "audit:read": "audit:read",
    "users:read": "users:write",
    "users:write": "users:write",
    "account:own": "account:own",
    "tenant:export": "tenant:own",
    "tenant:erase": "tenant:own",
}
"""Actions below a tenant, with the scope that they need; None: any of the tenant's credentials."""

ROLES: dict[str, tuple[str, ...]] = {
    "owner": (
        *("account:own", "tenant:own", "users:write", "keys:write", "settings:write"),
        *("models:read", "models:write", "detect", "usage:read", "audit:read"),
    ),
    "developer": (
        *("account:own", "keys:write", "settings:write"),
        *("models:read", "models:write", "detect", "usage:read"),
    ),
    "viewer": ("account:own", "models:read", "usage:read"),
    "billing": ("account:own", "usage:read"),
}
"""The scopes of a user. `users:write`, `tenant:own` and `account:own` are for people: no key can
have them."""

_OF_A_TENANT = frozenset({"key", "token", "user"})


def allowed(
    who: Principal | None, action: str, tenant: str | None = None, *, state: str = ""
) -> tuple[bool, str]:
    """Say whether `who` may do `action`, and else why not. Whatever is not in the table is not.

    who: None without a credential. tenant: the id of the tenant that owns the resource; None for
    the platform's own. state: of the principal's tenant.
    """
    if action in PUBLIC:
        return True, ""
    if who is None:
        return False, "this needs a credential"
    if action not in OPERATOR_ONLY and action not in SCOPE_OF:
        return False, "nobody may do this"
    if who.kind == "operator":
        own = action == "account:own"
        return not own, "the operator's key is no account; sign in as a user" if own else ""
    if who.kind not in _OF_A_TENANT:
        return False, "this credential is for another purpose"
    if action in OPERATOR_ONLY or tenant is None:
        return False, "only the platform's operator may do this"
    if tenant != who.tenant:
        return False, "this belongs to somebody else"
    if state == TenantState.SUSPENDED:
        return False, "this tenant is suspended; ask the platform's operator"
    scope = SCOPE_OF[action]
    if scope is not None and scope not in who.scopes:
        bearer = "role" if who.kind == "user" else who.kind
        return False, f"this {bearer} lacks the scope {scope}"
    return True, ""
