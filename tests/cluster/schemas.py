"""The published schemas of Kubernetes' releases and of the custom resources that are used.

Kubernetes' come with the package kubernetes-validate; KEDA's, the Prometheus operator's and
cert-manager's are those of the models that cloudcoil generates from their
CustomResourceDefinitions. All are made strict: a field that they do not name is refused.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import jsonschema_rs

RELEASES = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
_MODELS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
    "cert-manager.io/v1": "cloudcoil.models.cert_manager.v1",
}


def complaint(made: dict[str, Any], release: str) -> str:
    """Return what is wrong with an object in a release of Kubernetes; empty for nothing."""
    validator = _validator(made["apiVersion"], made["kind"], release)
    if validator is None:
        return f"there is no schema for {made['apiVersion']} {made['kind']}"
    for error in validator.iter_errors(made):
        return f"{made['kind']} {list(error.instance_path)}: {error.message[:300]}"
    return ""


@cache
def _validator(api_version: str, kind: str, release: str) -> Any:
    if api_version in _MODELS:
        return _of_model(api_version, kind)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    where = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{release}.0-local-strict"
    file = where / f"{kind.lower()}-{group}.json"
    if not file.is_file():
        return None
    document = json.loads(file.read_bytes())
    retrieved = _definitions(release)
    return jsonschema_rs.Draft202012Validator(
        {"$id": "file:///schemas/object.json", **document}, retriever=lambda _: retrieved
    )


@cache
def _definitions(release: str) -> Any:
    where = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{release}.0-local-strict"
    return json.loads((where / "_definitions.json").read_bytes())


@cache
def _of_model(api_version: str, kind: str) -> Any:
    model = getattr(import_module(_MODELS[api_version]), kind)
    return jsonschema_rs.Draft202012Validator(_strict(model.model_json_schema(by_alias=True)))


def _strict(schema: Any) -> Any:
    """Return a schema that names every field that it allows."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(inner) for name, inner in copy.copy(schema).items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made
