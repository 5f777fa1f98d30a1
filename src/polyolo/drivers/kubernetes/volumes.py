"""Where a pod's model files are: how much disk it needs for them, and what it mounts for them."""

from __future__ import annotations

from typing import Any

from polyolo.drivers.kubernetes import quantity
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.types import MOUNTED, RuntimeSpec

MODELS_MOUNT = "/run/polyolo/models"
STORAGE_MOUNT = "/run/polyolo/storage"
_CLAIM, _IMAGE = "pvc://", "image://"
_PICTURES = 64 << 20
"""Most bytes of a model's golden pictures."""
_BESIDES = 256 << 20
"""For the container's logs, of which a kubelet keeps 50 MiB, and for what a seal adds."""


def disk(spec: RuntimeSpec, settings: ClusterSettings) -> int:
    """Return the bytes of disk that a pod is given: all files that its spec names, and some.

    Any version may be asked for, and stays once it was fetched. What the pod mounts takes none. The
    settings' `disk_bytes`, doubled as often as it takes: a model more rarely makes new pods.
    """
    files: dict[str, int] = {}
    for model in spec.models:
        if any(version.golden for version in model.versions):
            files[f"pictures of {model.name}"] = _PICTURES
        for version in model.versions:
            if not version.uri.startswith(MOUNTED):
                files[version.digest] = version.size
    wanted, given = sum(files.values()) + _BESIDES, settings.disk_bytes
    while given < wanted:
        given *= 2
    return given


def mounts_storage(spec: RuntimeSpec) -> bool:
    """Say whether a version's file is in a storage that the pods are to mount.

    A storage that none needs yet is not mounted: its claim may still have to be made.
    """
    return bool(spec.storage) and any(
        version.uri.startswith(MOUNTED) for model in spec.models for version in model.versions
    )


def claims(spec: RuntimeSpec) -> int:
    """Return how many PersistentVolumeClaims the tenant's namespace may hold."""
    return int(spec.storage.startswith(_CLAIM))


def fits(spec: RuntimeSpec, settings: ClusterSettings) -> str:
    """Return what a pod is marked with that has the disk and the storage which a spec needs.

    One of another mark is not told of the spec: it could not hold the files, or not find them.
    """
    storage = spec.storage if mounts_storage(spec) else ""
    return f"{quantity.size(disk(spec, settings))} {storage}".rstrip()


def own_volumes(spec: RuntimeSpec) -> list[dict[str, Any]]:
    """Return the volume of the tenant's own storage, if the pod mounts it: the last one, for that
    is where a server puts what it had not."""
    if not mounts_storage(spec):
        return []
    name = _name(spec)
    if name == "claim":
        claim = spec.storage.removeprefix(_CLAIM)
        return [{"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]
    return [{"name": name, "image": {"reference": spec.storage.removeprefix(_IMAGE)}}]


def own_mounts(spec: RuntimeSpec) -> list[dict[str, Any]]:
    """Return where the container finds it."""
    if not mounts_storage(spec):
        return []
    return [{"name": _name(spec), "mountPath": STORAGE_MOUNT, "readOnly": True}]


def arguments(spec: RuntimeSpec) -> list[str]:
    """Return how the runtime is told; an older release knows no storage, and hears of none."""
    told = ["--models", MODELS_MOUNT]
    return [*told, "--storage", STORAGE_MOUNT] if mounts_storage(spec) else told


def _name(spec: RuntimeSpec) -> str:
    # Another kind has another name: applied over the other, a volume would have two sources.
    return "claim" if claims(spec) else "image"
