"""Operations on plans and limits."""

from __future__ import annotations

from collections.abc import Mapping

from polyolo.client.call import Call
from polyolo.client.compose import get, one, patch, tenant_path
from polyolo.resources import Limits, Tenant


def get_limits(tenant: str = "me") -> Call[Limits]:
    """Return what a tenant may use, and what it has used of this month."""
    return get(f"{tenant_path(tenant)}/limits", one(Limits))


def change_limits(
    tenant: str,
    limits: Mapping[str, float | None],
    resources: Mapping[str, float | None] | None = None,
) -> Call[Limits]:
    """Put limits of the tenant's own in place of its plan's. Operator only.

    limits, resources: by the names of the fields of Plan and Resources; None puts one back to the
    plan's. Raises InvalidValueError that names field and range.
    """
    fields: dict[str, object] = dict(limits)
    if resources:
        fields["resources"] = dict(resources)
    return patch(f"{tenant_path(tenant)}/limits", fields, one(Limits))


def change_plan(tenant: str, plan: str) -> Call[Tenant]:
    """Give a tenant another plan; its own limits stay. Operator only."""
    return patch(tenant_path(tenant), {"plan": plan}, one(Tenant))
