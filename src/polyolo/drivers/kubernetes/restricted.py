"""What holds for every pod that works on what strangers sent: a runtime's, and one of a Job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyolo.drivers.kubernetes import quantity

CONTAINER: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
"""A container's security context."""
TMP: Mapping[str, Any] = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # in memory
"""Where a container finds its `tmp`."""


def tmp(size: int) -> dict[str, Any]:
    """Return the volume of /tmp, in memory."""
    bounded = {"medium": "Memory", "sizeLimit": quantity.size(size)}
    return {"name": "tmp", "emptyDir": bounded}


def pod(
    user: int,
    *,
    account: str,
    user_namespaces: bool,
    runtime_class: str,
    nodes: Mapping[str, str],
    taints: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what there is of a pod besides its containers and volumes.

    user: UID and GID. account: its ServiceAccount, of which it sees no token.
    """
    one = user % 65_000 + 535 if user_namespaces else user
    made: dict[str, Any] = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "dnsPolicy": "Default",  # it resolves nothing; this keeps the cluster's names out of sight
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": one,
            "runAsGroup": one,
            "fsGroup": one,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if user_namespaces:
        made["hostUsers"] = False
    if nodes:
        made["nodeSelector"] = dict(nodes)
    if taints:
        made["tolerations"] = [dict(taint) for taint in taints]
    if runtime_class:
        made["runtimeClassName"] = runtime_class
    return made
