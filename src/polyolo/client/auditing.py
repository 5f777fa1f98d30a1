"""Operations on the audit log."""

from __future__ import annotations

from polyolo.client.call import Call
from polyolo.client.compose import each, get, one, tenant_path
from polyolo.resources import AuditEntry, AuditVerdict


def list_audit(
    *,
    since: float | None = None,
    until: float | None = None,
    after: int = 0,
    limit: int = 100,
    newest: bool = False,
    tenant: str | None = "me",
) -> Call[list[AuditEntry]]:
    """Return entries of the audit log, oldest first.

    since, until: unix seconds; None: no bound. after: `seq` of the last entry seen. limit: at
    most so many, 1 to 1000. newest: the last ones, whatever `after`. tenant: None for
    everything, as the operator.
    """
    wanted: dict[str, object] = {"since": since, "until": until, "after": after, "limit": limit}
    if newest:
        wanted["newest"] = "true"
    query = tuple((name, str(value)) for name, value in wanted.items() if value is not None)
    return get(_path(tenant), each(AuditEntry, "entries"), query=query)


def verify_audit(tenant: str | None = "me") -> Call[AuditVerdict]:
    """Check that the entries are as they were written, and all there.

    tenant: None for the whole log, as the operator.
    """
    return get(f"{_path(tenant)}/verify", one(AuditVerdict))


def _path(tenant: str | None) -> str:
    return "/api/v1/audit" if tenant is None else f"{tenant_path(tenant)}/audit"
