"""One RuntimeSpec as the objects of its namespace: a pure function, strings only ever values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from polyolo.drivers.kubernetes import fences, scaling, workload
from polyolo.drivers.kubernetes.naming import OBJECT, RENDERED, TENANT, Object, Place, place
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.types import RuntimeSpec

_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Which optional parts of a cluster are used."""

    monitors: bool = False


def render(
    spec: RuntimeSpec,
    settings: ClusterSettings,
    features: Features,
    keys: Mapping[str, str],
) -> tuple[Object, ...]:
    """Return all objects of a tenant, in the order in which they are applied.

    The fences come before what they hold in. keys: the runtime's secrets, by variable. Raises
    ValueError for what is no tenant's id, OSError for a release without image and for a document
    that is too large.
    """
    where = place(spec.tenant, settings.platform)
    made = [
        fences.namespace(settings),
        fences.deny_all(),
        fences.quota(spec, settings),
        fences.limits(spec, settings),
        fences.policy(settings, where),
        fences.service_account(),
        workload.secret(keys),
        workload.config_map(spec, settings),
        workload.service(where),
        workload.disruption_budget(where),
        workload.deployment(spec, settings, where, keys, _replicas(spec, settings)),
    ]
    if settings.scaling is Scaling.KEDA:
        made.append(scaling.scaled_object(spec, settings))
    elif _autoscaled(spec, settings):
        made.append(scaling.autoscaler(spec, settings))
    if features.monitors:
        made += [scaling.pod_monitor(where), scaling.prometheus_rule(where)]
    return tuple(_marked(one, where) for one in made)


def _autoscaled(spec: RuntimeSpec, settings: ClusterSettings) -> bool:
    return settings.scaling is Scaling.HPA and 0 < spec.replicas < spec.max_replicas


def _replicas(spec: RuntimeSpec, settings: ClusterSettings) -> int | None:
    """Return the number that we set; None where an autoscaler does, for it would be fought."""
    theirs = settings.scaling is Scaling.KEDA or _autoscaled(spec, settings)
    return None if theirs else spec.replicas


def _marked(made: Object, where: Place) -> Object:
    """Return an object with its name, whose it is, and the digest of itself."""
    given = made.get("metadata", {})
    name = where.namespace if made["kind"] == "Namespace" else given.get("name", OBJECT)
    metadata = {
        "name": name,
        "labels": {**given.get("labels", {}), **where.labels},
        "annotations": {TENANT: where.tenant},
    }
    if made["kind"] != "Namespace":
        metadata["namespace"] = where.namespace
    whole = {**made, "metadata": metadata}
    digest = hashlib.sha256(_encode(whole)).hexdigest()[:32]
    annotated = {**metadata, "annotations": {TENANT: where.tenant, RENDERED: digest}}
    return {**made, "metadata": annotated}
