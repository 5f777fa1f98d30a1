"""Operations on the machine that the platform runs on."""

from __future__ import annotations

from polyolo.client.call import Call
from polyolo.client.compose import get, one
from polyolo.resources import HostIsolation


def get_isolation() -> Call[HostIsolation]:
    """Return what keeps tenants apart on the platform's host. Operator only."""
    return get("/api/v1/system/isolation", one(HostIsolation))
