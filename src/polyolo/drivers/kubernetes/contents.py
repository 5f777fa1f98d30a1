"""Reads what a tenant's namespace holds, as the mirror has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from polyolo.drivers.kubernetes.cluster import BY_NAME, CONFIG_MAP, POD, ClusterError, Kind
from polyolo.drivers.kubernetes.mirror import Key, Seen
from polyolo.drivers.kubernetes.naming import OBJECT, RENDERED, Object
from polyolo.drivers.kubernetes.pods import Pod, read_pod
from polyolo.drivers.kubernetes.workload import SPEC_FILE
from polyolo.types import RuntimeSpec


def key(one: Object) -> Key:
    """Return an object's key in its namespace."""
    return one["kind"], one["metadata"]["name"]


def digest(rendered: Object) -> str:
    """Return what tells one rendering of an object from another."""
    found: str = rendered["metadata"]["annotations"][RENDERED]
    return found


def pods(seen: Mapping[Key, Seen]) -> list[Pod]:
    """Return the pods that are there."""
    return [read_pod(found.object()) for (kind, _), found in seen.items() if kind == POD.kind]


def going(seen: Mapping[Key, Seen], which: Key) -> bool:
    """Say whether an object is there and being deleted."""
    return which in seen and "deletionTimestamp" in seen[which].object()["metadata"]


def document(seen: Mapping[Key, Seen]) -> RuntimeSpec | None:
    """Return the spec that the namespace's document holds."""
    found = seen.get((CONFIG_MAP.kind, OBJECT))
    if found is None:
        return None
    text: Any = found.object().get("data", {}).get(SPEC_FILE, "")
    try:
        return msgspec.json.decode(text, type=RuntimeSpec)
    except (msgspec.DecodeError, ValueError, TypeError):
        return None


def left_over(seen: Mapping[Key, Seen], objects: Collection[Object]) -> list[tuple[Kind, str]]:
    """Return what we rendered once and do not any more. What has an owner, its owner made."""
    wanted = {key(one) for one in objects}
    left = []
    for (kind, name), found in seen.items():
        if (kind, name) in wanted or kind == POD.kind:
            continue
        metadata = found.object()["metadata"]
        rendered = RENDERED in metadata.get("annotations", {})
        if rendered and not metadata.get("ownerReferences") and "deletionTimestamp" not in metadata:
            left.append((BY_NAME[kind], name))
    return left


def check_files(spec: RuntimeSpec) -> None:
    """Raise FileNotFoundError for a model's file that is not in the store."""
    for model in spec.models:
        for version in model.versions:
            if version.uri.startswith("/") and not Path(version.uri).is_file():
                raise FileNotFoundError(2, "the model's file is gone", version.uri)


def not_ours(kind: str, name: str) -> ClusterError:
    """Return the error for something of our name that is somebody else's."""
    return ClusterError(
        409,
        f"{kind} {name} exists and was not made by this platform; delete it, or give the "
        "platform another name",
    )
