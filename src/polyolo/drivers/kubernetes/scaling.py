"""How many pods: by KEDA where it is, else by a HorizontalPodAutoscaler; and what watches them."""

from __future__ import annotations

from typing import Any

from polyolo.drivers.kubernetes.naming import OBJECT, Object, Place
from polyolo.drivers.kubernetes.settings import ClusterSettings, Load
from polyolo.types import RuntimeSpec

_CALM_S = 120
"""Seconds for which fewer replicas must have been enough before one goes: a start costs more."""
_COOL_S = 5
"""Seconds from the last activity to zero; control has waited for the plan's idle time before."""
_TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": OBJECT}


def scaled_object(spec: RuntimeSpec, settings: ClusterSettings) -> Object:
    """Return KEDA's ScaledObject: the gateways push the first request, and tell how many run."""
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "spec": {
            "scaleTargetRef": _TARGET,
            "minReplicaCount": spec.replicas,
            "maxReplicaCount": most(spec),
            "pollingInterval": 15,
            "cooldownPeriod": _COOL_S,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": [
                {
                    "type": "external-push",
                    "metricType": "AverageValue",
                    "metadata": {
                        "scalerAddress": settings.scaler,
                        "tenant": spec.tenant,
                        "target": f"{settings.in_flight:g}",
                    },
                }
            ],
        },
    }


def autoscaler(spec: RuntimeSpec, settings: ClusterSettings) -> Object:
    """Return the HorizontalPodAutoscaler of a runtime that is awake."""
    metric: dict[str, Any]
    if settings.load is Load.CPU:
        target = {"type": "Utilization", "averageUtilization": settings.cpu_percent}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    else:
        value = {"type": "AverageValue", "averageValue": f"{settings.in_flight:g}"}
        name = {"name": "polyolo_requests_in_flight"}
        metric = {"type": "Pods", "pods": {"metric": name, "target": value}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {
            "scaleTargetRef": _TARGET,
            "minReplicas": max(1, spec.replicas),
            "maxReplicas": most(spec),
            "metrics": [metric],
            "behavior": _behavior(),
        },
    }


def most(spec: RuntimeSpec) -> int:
    """Return the most replicas that there may be."""
    return max(spec.replicas, spec.max_replicas, 1)


def _behavior() -> dict[str, Any]:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 4, "periodSeconds": 15},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": _CALM_S,
            "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        },
    }


def pod_monitor(place: Place) -> Object:
    """Return the PodMonitor: Prometheus reads every pod's metrics."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "spec": {
            "selector": {"matchLabels": dict(place.labels)},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "30s"}],
            "sampleLimit": 20_000,
        },
    }


def prometheus_rule(place: Place) -> Object:
    """Return the PrometheusRule: what is wrong with one runtime, before its tenant calls."""
    here = f'namespace="{place.namespace}"'
    failed = f'sum(rate(polyolo_requests_total{{{here},code=~"5.."}}[5m]))'
    total = f"sum(rate(polyolo_requests_total{{{here}}}[5m]))"
    buckets = f"sum(rate(polyolo_request_duration_seconds_bucket{{{here}}}[5m])) by (le)"

    def rule(name: str, expression: str, minutes: int, severity: str, summary: str) -> Object:
        return {
            "alert": name,
            "expr": expression,
            "for": f"{minutes}m",
            "labels": {"severity": severity, "platform": place.namespace},
            "annotations": {"summary": summary},
        }

    rules = [
        rule(
            "PolyoloRuntimeFailing",
            f"{failed} / {total} > 0.05",
            5,
            "critical",
            "More than 5 % of a runtime's requests fail.",
        ),
        rule(
            "PolyoloRuntimeSlow",
            f"histogram_quantile(0.99, {buckets}) > 2",
            10,
            "warning",
            "One request in a hundred takes a runtime more than 2 s.",
        ),
        rule(
            "PolyoloRuntimeCongested",
            f"sum(polyolo_queue_depth{{{here}}}) > 50",
            5,
            "warning",
            "More than 50 pictures wait for a runtime; its plan may need more replicas.",
        ),
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "spec": {"groups": [{"name": "polyolo-runtime", "rules": rules}]},
    }
