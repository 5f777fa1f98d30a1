"""A tenant's own storage: granted by the operator, its files registered as versions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from polyolo.client.call import Call
from polyolo.client.compose import delete, get, one, quoted, tenant_path
from polyolo.resources import ModelVersion, Storage


def grant_storage(
    tenant: str,
    uri: str,
    *,
    endpoint: str = "",
    region: str = "",
    access_key_id: str = "",
    secret_access_key: str = "",
) -> Call[Storage]:
    """Let the platform read a tenant's model files where the tenant keeps them. Operator only.

    uri: `file:///directory` of the control plane's machine, or `s3://bucket/prefix`; on Kubernetes
    also `pvc://CLAIM` or `image://REFERENCE`, which the tenant's runtime mounts.
    """
    fields = {
        "uri": uri,
        "endpoint": endpoint,
        "region": region,
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
    }
    return Call(
        method="PUT",
        path=f"{tenant_path(tenant)}/storage",
        headers={"content-type": "application/json"},
        body=msgspec.json.encode(fields),
        read=one(Storage),
        repeatable=True,
    )


def get_storage(tenant: str = "me") -> Call[Storage]:
    """Return where a tenant keeps model files of its own. Raises NotFoundError without one."""
    return get(f"{tenant_path(tenant)}/storage", one(Storage))


def withdraw_storage(tenant: str) -> Call[None]:
    """Read a tenant's storage no longer. Operator only."""
    return delete(f"{tenant_path(tenant)}/storage")


def register_model(
    name: str,
    uri: str,
    sha256: str,
    *,
    size: int | None = None,
    classes: Sequence[str] = (),
    tenant: str = "me",
) -> Call[ModelVersion]:
    """Make a file of the tenant's own storage the next version of `name`.

    uri: its path there. The platform reads and checks it, and keeps its name and sha256; bytes
    that do not match are never served. size: bytes, needed where only the runtime reads the file;
    then it is looked into when it is to be served. Raises ModelRefusedError with the reason.
    """
    fields = {"uri": uri, "sha256": sha256, "size": size, "classes": list(classes)}
    return Call(
        method="POST",
        path=f"{tenant_path(tenant)}/models/{quoted(name)}/versions",
        headers={"content-type": "application/json"},
        body=msgspec.json.encode(fields),
        read=one(ModelVersion),
    )
