"""Operations for those who do not want to wait for a runtime that sleeps."""

from __future__ import annotations

from collections.abc import Sequence

from polyolo.client.call import Call
from polyolo.client.compose import get, one, patch, post, tenant_path
from polyolo.resources import Schedule
from polyolo.types import RuntimeStatus


def warm(tenant: str = "me") -> Call[RuntimeStatus]:
    """Wake a tenant's runtime, as a request would; return its status once it answers or fails."""
    path = f"{tenant_path(tenant)}/runtime/warm"
    return post(path, {}, one(RuntimeStatus), repeatable=True)


def get_schedule(tenant: str = "me") -> Call[Schedule]:
    """Return when a tenant's runtime is kept awake."""
    return get(f"{tenant_path(tenant)}/runtime/schedule", one(Schedule))


def set_schedule(tenant: str, windows: Sequence[str]) -> Call[Schedule]:
    """Keep a tenant's runtime awake in these hours of the week and no others. Operator only.

    windows: as `mon-fri 07:30-18:00`, in UTC. Raises InvalidValueError for others.
    """
    path = f"{tenant_path(tenant)}/runtime/schedule"
    return patch(path, {"windows": list(windows)}, one(Schedule))
