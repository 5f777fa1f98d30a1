"""What an API server makes of an object before it keeps it: defaults, canonical amounts."""

from __future__ import annotations

import hashlib
import re
from typing import Any

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_AMOUNTS = {"hard", "requests", "limits", "max", "min", "default", "defaultRequest"}
_DECIMAL = ("", "k", "M", "G", "T", "P")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


def defaulted(made: dict[str, Any]) -> dict[str, Any]:
    """Return an object as the server keeps it."""
    kept: dict[str, Any] = _clean(made)
    spec = kept.get("spec", {})
    match kept["kind"]:
        case "Namespace":
            kept["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = kept[
                "metadata"
            ]["name"]
            kept.setdefault("spec", {"finalizers": ["kubernetes"]})
            kept.setdefault("status", {"phase": "Active"})
        case "Deployment":
            spec.setdefault("replicas", 1)
            spec.setdefault("progressDeadlineSeconds", 600)
            _pod(spec["template"]["spec"])
        case "Service":
            name = f"{kept['metadata']['namespace']}/{kept['metadata']['name']}"
            octets = hashlib.sha256(name.encode()).digest()
            spec.setdefault("clusterIP", f"10.96.{octets[0]}.{octets[1]}")
            spec.setdefault("clusterIPs", [spec["clusterIP"]])
            spec.setdefault("sessionAffinity", "None")
            spec.setdefault("internalTrafficPolicy", "Cluster")
            spec.setdefault("ipFamilies", ["IPv4"])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
        case "LimitRange":
            for limit in spec.get("limits", ()):
                limit.setdefault("defaultRequest", dict(limit.get("default", {})))
    return kept


def _pod(spec: dict[str, Any]) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("serviceAccount", spec.get("serviceAccountName"))
    for container in spec["containers"]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe := container.get(name):
                probe.setdefault("successThreshold", 1)
                probe.setdefault("failureThreshold", 3)
                probe["httpGet"].setdefault("scheme", "HTTP")
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            volume["configMap"].setdefault("defaultMode", 420)


def _clean(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        cleaned = {
            key: _canonical(inner) if name in _AMOUNTS else _clean(inner, key)
            for key, inner in value.items()
        }
        # Kubernetes' types leave empty strings and lists out of their JSON.
        return {key: inner for key, inner in cleaned.items() if inner not in ("", [], None)}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value


def _canonical(amount: Any) -> Any:
    """Return a quantity as resource.Quantity writes it: the largest unit without a fraction."""
    matched = _AMOUNT.fullmatch(str(amount))
    if matched is None:
        return amount
    number, unit = float(matched[1]), matched[2] or ""
    if unit == "m":
        thousandths = round(number)
    elif unit in _BINARY[1:]:
        count, step = round(number), _BINARY.index(unit)
        while count and count % 1024 == 0 and step < len(_BINARY) - 1:
            count, step = count // 1024, step + 1
        return f"{count}{_BINARY[step]}"
    else:
        thousandths = round(number * 1000 ** (_DECIMAL.index(unit) + 1))
    if thousandths % 1000:
        return f"{thousandths}m"
    count, step = thousandths // 1000, 0
    while count and count % 1000 == 0 and step < len(_DECIMAL) - 1:
        count, step = count // 1000, step + 1
    return f"{count}{_DECIMAL[step]}"
