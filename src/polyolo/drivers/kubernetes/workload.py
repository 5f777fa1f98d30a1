"""The runtime itself: its document and keys, its pods, and how they are reached."""

from __future__ import annotations

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from polyolo.drivers.kubernetes import quantity, restricted, volumes
from polyolo.drivers.kubernetes.naming import FILES, GRPC, HTTP, OBJECT, RELEASE, Object, Place
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.types import MOUNTED, Resources, RuntimeSpec

SPEC_FILE = "spec.json"
_SPEC_MOUNT = "/etc/polyolo"
_DOCUMENT_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB in all; 20 models of 1,000 class names are 200 kB."""
_KILL_S = 5
"""After the drain, for the process to end."""
_RELEASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one pod asks for, and may use at most."""

    cpus: float
    most_cpus: float
    memory_bytes: int


def demand(resources: Resources, settings: ClusterSettings) -> Demand:
    """Return what a plan's resources mean here."""
    return Demand(
        cpus=resources.cpus or settings.least_cpus,
        most_cpus=resources.cpus or settings.most_cpus,
        memory_bytes=resources.memory_bytes,
    )


def gpus(share: float, settings: ClusterSettings) -> tuple[str, int]:
    """Return the extended resource that gives a share of GPUs, and how many of it.

    A part of one is the smallest slice that is large enough, else a whole one.
    """
    if share <= 0:
        return settings.gpu_resource, 0
    if share < 1:
        for size, name in sorted((float(size), name) for size, name in settings.gpu_slices.items()):
            if size >= share:
                return name, 1
    return settings.gpu_resource, math.ceil(share)


def document(spec: RuntimeSpec, settings: ClusterSettings) -> bytes:
    """Return the spec document as pods read it: files by URL.

    `object:NAME`, a file of the store by its name there, becomes that name below `artifacts`, and
    so does the last part of a path; what a pod mounts keeps its name. The same for a spec and for
    what was read back from such a document. Raises OSError when it is too large.
    """

    def there(uri: str) -> str:
        if "://" in uri or uri.startswith(MOUNTED):  # the tenant's own store, or translated already
            return uri
        scheme, _, name = uri.rpartition(":")
        return f"{settings.artifacts}/{name if scheme else name.rpartition('/')[2]}"

    models = tuple(
        replace(
            model,
            versions=tuple(
                replace(
                    version,
                    uri=there(version.uri),
                    golden=tuple(there(picture) for picture in version.golden),
                )
                for version in model.versions
            ),
        )
        for model in spec.models
    )
    found: bytes = msgspec.json.encode(replace(spec, models=models))
    if len(found) > _DOCUMENT_BYTES:
        raise OSError(
            f"the models of {spec.tenant} are described by {len(found):,} bytes, more than the "
            f"{_DOCUMENT_BYTES:,} that a ConfigMap may hold; delete models, or shorten class names"
        )
    return found


def config_map(spec: RuntimeSpec, settings: ClusterSettings) -> Object:
    """Return the ConfigMap with the spec document."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": {SPEC_FILE: document(spec, settings).decode()},
    }


def secret(keys: Mapping[str, str]) -> Object:
    """Return the Secret with the runtime's keys, by the variable that it reads them from."""
    data = {name: b64encode(value.encode()).decode() for name, value in keys.items()}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}


def image(release: str, settings: ClusterSettings) -> str:
    """Return the image of a release; raise OSError for one that nobody has named."""
    if not release:
        return settings.image
    named = settings.releases.get(release) if _RELEASE.fullmatch(release) else None
    if named is None:
        raise OSError(
            f"there is no image for the runtime's release {release[:128]!r}; name it in `releases`"
        )
    return named


def deployment(
    spec: RuntimeSpec,
    settings: ClusterSettings,
    place: Place,
    keys: Mapping[str, str],
    replicas: int | None,
) -> Object:
    """Return the Deployment. replicas: None leaves their number to an autoscaler."""
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(place.labels)},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
    gpu = spec.resources.gpus > 0
    pod = {
        **restricted.pod(
            place.user,
            account=OBJECT,
            user_namespaces=settings.user_namespaces,
            runtime_class=settings.runtime_class,
            nodes={**settings.node_selector, **(settings.gpu_node_selector if gpu else {})},
            taints=(*settings.tolerations, *(settings.gpu_tolerations if gpu else ())),
        ),
        "terminationGracePeriodSeconds": settings.leave_s + settings.drain_s + _KILL_S,
        "topologySpreadConstraints": spread,
        "containers": [_container(spec, settings)],
        "volumes": [
            {"name": "spec", "configMap": {"name": OBJECT}},
            {
                "name": "models",
                "emptyDir": {"sizeLimit": quantity.size(volumes.disk(spec, settings))},
            },
            restricted.tmp(settings.tmp_bytes),
            *volumes.own_volumes(spec),
        ],
    }
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    # New keys reach a process only when it starts: their digest makes new pods.
    seal = hashlib.sha256(repr(sorted(keys.items())).encode()).hexdigest()
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {
            **({"replicas": replicas} if replicas is not None else {}),
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": dict(place.labels)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": {"app.kubernetes.io/name": "polyolo-serving", **place.labels},
                    "annotations": {
                        "polyolo/keys": seal[:32],
                        RELEASE: spec.release,
                        FILES: volumes.fits(spec, settings),
                    },
                },
                "spec": pod,
            },
        },
    }


def _container(spec: RuntimeSpec, settings: ClusterSettings) -> dict[str, Any]:
    needs = demand(spec.resources, settings)
    requests = {
        "cpu": quantity.cores(needs.cpus),
        "memory": quantity.size(needs.memory_bytes),
        "ephemeral-storage": quantity.size(volumes.disk(spec, settings)),
    }
    most = {**requests, "cpu": quantity.cores(needs.most_cpus)}
    resource, count = gpus(spec.resources.gpus, settings)
    if count:
        requests[resource] = most[resource] = str(count)

    def probe(path: str, **more: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 3, **more}

    return {
        "name": "runtime",
        "image": image(spec.release, settings),
        "imagePullPolicy": settings.pull_policy,
        "args": [
            *("--spec", f"{_SPEC_MOUNT}/{SPEC_FILE}", *volumes.arguments(spec)),
            *("--host", "0.0.0.0", "--port", str(HTTP)),  # noqa: S104  # a pod's own address
        ],
        "envFrom": [{"secretRef": {"name": OBJECT}}],
        "ports": [
            {"name": "http", "containerPort": HTTP, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC, "protocol": "TCP"},
        ],
        # Every second while it starts: a request is held for it. Two minutes are a large model's.
        "startupProbe": probe("/livez", periodSeconds=1, failureThreshold=120),
        "readinessProbe": probe("/readyz", periodSeconds=1, failureThreshold=3),
        # 10 s to find a hung one, as on one machine.
        "livenessProbe": probe("/livez", periodSeconds=5, failureThreshold=2),
        "lifecycle": {"preStop": {"sleep": {"seconds": settings.leave_s}}},
        "resources": {"requests": requests, "limits": most},
        "securityContext": dict(restricted.CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "spec", "mountPath": _SPEC_MOUNT, "readOnly": True},
            {"name": "models", "mountPath": volumes.MODELS_MOUNT},
            dict(restricted.TMP),
            *volumes.own_mounts(spec),
        ],
    }


def service(place: Place) -> Object:
    """Return the Service, for people and tools; gateways ask the pods themselves."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {
            "type": "ClusterIP",
            "selector": dict(place.labels),
            "ports": [
                {"name": "http", "port": HTTP, "targetPort": "http", "protocol": "TCP"},
                {"name": "grpc", "port": GRPC, "targetPort": "grpc", "protocol": "TCP"},
            ],
        },
    }


def disruption_budget(place: Place) -> Object:
    """Return the PodDisruptionBudget: one at a time, and a broken one never holds up a node."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": dict(place.labels)},
        },
    }
