"""What closes a tenant in: its namespace, what it may use there, and whom it may speak to."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from polyolo.drivers.kubernetes import quantity, volumes
from polyolo.drivers.kubernetes.naming import DENY, GRPC, HTTP, OBJECT, Object, Place
from polyolo.drivers.kubernetes.scaling import most
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.drivers.kubernetes.workload import demand, gpus
from polyolo.types import RuntimeSpec

_NAMESPACE_NAME = "kubernetes.io/metadata.name"
_COMPONENT = "app.kubernetes.io/component"
_SPARE = 2
"""Pods above the most replicas: one that a rolling update starts, one that drains meanwhile."""
_FEW = "5"
"""Objects of a kind of which we make one. What the API server admits and then does not make (a
second kube-root-ca.crt) counts until the quota is reckoned again, minutes later: a quota of just
what there is refuses our own."""
_METADATA = "169.254.0.0/16"
"""Link-local: where clouds answer with the node's credentials."""
_METADATA_6 = "fd00:ec2::254/128"


def namespace(settings: ClusterSettings) -> Object:
    """Return the Namespace, with the restricted Pod Security Standard enforced."""
    labels = {}
    for mode in ("enforce", "audit", "warn"):
        labels[f"pod-security.kubernetes.io/{mode}"] = "restricted"
        labels[f"pod-security.kubernetes.io/{mode}-version"] = settings.pod_security
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"labels": labels}}


def quota(spec: RuntimeSpec, settings: ClusterSettings) -> Object:
    """Return the ResourceQuota: what the plan gives, and no way round the gateway."""
    copies = most(spec) + _SPARE
    needs, space = demand(spec.resources, settings), volumes.disk(spec, settings)
    resource, count = gpus(spec.resources.gpus, settings)
    kinds = {settings.gpu_resource, *settings.gpu_slices.values()}
    hard = {
        "requests.cpu": quantity.cores(needs.cpus * copies),
        "limits.cpu": quantity.cores(needs.most_cpus * copies),
        "requests.memory": quantity.size(needs.memory_bytes * copies),
        "limits.memory": quantity.size(needs.memory_bytes * copies),
        "requests.ephemeral-storage": quantity.size(space * copies),
        "limits.ephemeral-storage": quantity.size(space * copies),
        **{f"requests.{kind}": "0" for kind in sorted(kinds)},
        "pods": str(copies),
        "count/deployments.apps": _FEW,
        "count/replicasets.apps": "10",
        "count/statefulsets.apps": "0",
        "count/jobs.batch": "0",
        "count/cronjobs.batch": "0",
        "count/ingresses.networking.k8s.io": "0",
        "services": _FEW,
        "services.nodeports": "0",
        "services.loadbalancers": "0",
        "persistentvolumeclaims": str(volumes.claims(spec)),  # the operator's, with the models
        "configmaps": _FEW,
        "secrets": _FEW,
    }
    if count:
        hard[f"requests.{resource}"] = str(count * copies)
    return {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": hard}}


def passable(rendered: Object, live: Object) -> Object:
    """Return the quota that may be set now: one more pod has to fit beside those that are there.

    A plan that gives less, or files that are gone, make smaller pods. With the new quota at once,
    the larger ones, which leave only when the first of the new is ready, would keep that one out.
    """
    hard, was = rendered["spec"]["hard"], live.get("spec", {}).get("hard", {})
    used = live.get("status", {}).get("used", {})
    kept = dict(hard)
    for name in hard:
        if name.startswith(("requests.", "limits.")):
            most = quantity.read(hard[name])
            beside = quantity.read(used.get(name, "0")) + most / int(hard["pods"])
            if beside > most and quantity.read(was.get(name, "0")) > most:
                kept[name] = was[name]
    return {**rendered, "spec": {"hard": kept}}


def limits(spec: RuntimeSpec, settings: ClusterSettings) -> Object:
    """Return the LimitRange: nothing runs there without limits, or beyond a runtime's."""
    needs = demand(spec.resources, settings)
    upper = {
        "cpu": quantity.cores(needs.most_cpus),
        "memory": quantity.size(needs.memory_bytes),
        "ephemeral-storage": quantity.size(volumes.disk(spec, settings)),
    }
    least = {**upper, "cpu": quantity.cores(needs.cpus)}
    limit = {"type": "Container", "max": upper, "default": upper, "defaultRequest": least}
    return {"apiVersion": "v1", "kind": "LimitRange", "spec": {"limits": [limit]}}


def deny_all() -> Object:
    """Return the NetworkPolicy that closes the namespace both ways."""
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return _policy(DENY, closed)


def policy(settings: ClusterSettings, place: Place) -> Object:
    """Return the NetworkPolicy that lets the platform in, and the runtime to its models."""
    ways_in = [
        _way("from", [_component(settings, "gateway")], [HTTP, GRPC]),
        _way("from", [_component(settings, "control")], [HTTP]),
    ]
    if settings.monitoring_namespace:
        readers = {
            "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: settings.monitoring_namespace}}
        }
        ways_in.append(_way("from", [readers], [HTTP]))
    ways_out = [_way("to", [_component(settings, "control")], [_port(settings.artifacts)])]
    for network in settings.egress:
        block = {"cidr": network.cidr}
        hole = _METADATA_6 if ":" in network.cidr else _METADATA
        if _holds(network.cidr, hole):
            block["except"] = [hole]  # type: ignore[assignment]
        ways_out.append(_way("to", [{"ipBlock": block}], [network.port]))
    opened = {
        "podSelector": {"matchLabels": dict(place.labels)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ways_in,
        "egress": ways_out,
    }
    return _policy(OBJECT, opened)


def service_account() -> Object:
    """Return the ServiceAccount of the runtime, of which it never sees a token."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "automountServiceAccountToken": False,
    }


def _policy(name: str, spec: dict[str, Any]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _way(direction: str, peers: list[dict[str, Any]], ports: list[int]) -> dict[str, Any]:
    return {direction: peers, "ports": [{"port": port, "protocol": "TCP"} for port in ports]}


def _component(settings: ClusterSettings, name: str) -> dict[str, Any]:
    """Return the peer of this platform's own pods: of its namespace, and only of that part."""
    return {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: settings.namespace}},
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/instance": settings.platform, _COMPONENT: name}
        },
    }


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _holds(cidr: str, other: str) -> bool:
    outer, inner = ip_network(cidr, strict=False), ip_network(other)
    return outer.version == inner.version and outer.overlaps(inner)
