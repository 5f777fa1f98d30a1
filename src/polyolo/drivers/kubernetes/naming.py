"""What is whose: names that never collide, and the marks by which a platform knows its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OBJECT = "polyolo-runtime"
"""Name of a tenant's objects, one of each kind in its namespace: roles can name it."""
DENY = "polyolo-deny-all"
"""Name of the NetworkPolicy that closes a namespace."""

MANAGED_BY = "app.kubernetes.io/managed-by"
PLATFORM = "polyolo/platform"
"""Label: which platform made it."""
PLACE = "polyolo/place"
"""Label: which tenant's it is, as in its namespace's name."""
TENANT = "polyolo/tenant"
"""Annotation: the tenant's exact id, which a label could not hold."""
RENDERED = "polyolo/rendered"
"""Annotation: digest of the object as it was rendered."""
RELEASE = "polyolo/release"
"""Annotation of pods: the release of the program in it."""
FILES = "polyolo/files"
"""Annotation of pods: the disk and the storage that they have for model files."""
HTTP, GRPC = 8080, 8081
FIRST_USER, USERS = 100_000_000, 2_000_000_000
"""UIDs of pods: no person's, and none of a distribution's."""

Object = dict[str, Any]
"""A Kubernetes object as JSON."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one tenant's runtime lives, and how everything there is marked."""

    tenant: str
    slug: str
    namespace: str
    labels: Mapping[str, str]
    user: int
    """UID and GID of its processes: no other tenant's, no person's."""


def place(tenant: str, platform: str) -> Place:
    """Return where a tenant's runtime lives; raise ValueError for what is no tenant's id.

    The name is a slug for people and a digest of the exact id: two tenants never share one, be
    their ids equal but for case or for what a name cannot hold.
    """
    if not _ID.fullmatch(tenant):
        raise ValueError(f"not a tenant's id: {tenant!r}")
    digest = hashlib.sha256(f"{platform}/{tenant}".encode()).hexdigest()
    word = re.sub(r"[^a-z0-9]+", "-", tenant.lower()).strip("-")[:20].rstrip("-")
    slug = f"{word}-{digest[:12]}" if word else digest[:12]
    return Place(
        tenant=tenant,
        slug=slug,
        namespace=f"{platform}-{slug}",  # at most 20 + 1 + 33 of 63 characters
        labels={MANAGED_BY: "polyolo", PLATFORM: platform, PLACE: slug},
        user=FIRST_USER + int(digest[12:24], 16) % USERS,
    )


def selector(platform: str) -> str:
    """Return the label selector of all that a platform made."""
    return f"{MANAGED_BY}=polyolo,{PLATFORM}={platform}"


def tenant_of(found: Mapping[str, Any], platform: str) -> str | None:
    """Return whose an object is; None when this platform did not make it.

    Every mark has to fit the others: nobody's namespace is taken for a tenant's for one label.
    """
    metadata = found.get("metadata") or {}
    labels = metadata.get("labels") or {}
    tenant = (metadata.get("annotations") or {}).get(TENANT)
    if not isinstance(tenant, str) or not _ID.fullmatch(tenant):
        return None
    own = place(tenant, platform)
    marked = all(labels.get(name) == value for name, value in own.labels.items())
    inside = metadata.get("namespace", metadata.get("name")) == own.namespace
    return tenant if marked and inside else None
