"""Where a pod's model files are: disk for all that its spec names, its tenant's own storage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from polyolo.drivers.kubernetes import fences, volumes
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.errors import InvalidValueError
from polyolo.types import MOUNTED, ModelSpec, RuntimeSpec, VersionSpec
from tests.cluster.clusters import SETTINGS, keys, spec_of

GIB = 1 << 30


def spec(*sizes: int, golden: tuple[str, ...] = (), **more: Any) -> RuntimeSpec:
    """Return a spec with a version of each size."""
    versions = tuple(
        VersionSpec(
            version=number, digest=f"{number:064}", uri=f"object:{number}", size=size, golden=golden
        )
        for number, size in enumerate(sizes, 1)
    )
    models = (ModelSpec(name="city", current=1, versions=versions),)
    return spec_of("t_a", models=models, default_model="city", **more)


def mounting(storage: str, path: str = "city/v1.onnx", size: int = 5) -> RuntimeSpec:
    """Return a spec with a version in a storage."""
    version = VersionSpec(version=1, digest="a" * 64, uri=f"{MOUNTED}{path}", size=size)
    models = (ModelSpec(name="city", current=1, versions=(version,)),)
    return spec_of("t_a", models=models, default_model="city", storage=storage)


def rendered(of: RuntimeSpec) -> dict[str, Any]:
    return {one["kind"]: one for one in render(of, SETTINGS, Features(), keys("t_a"))}


def container(made: dict[str, Any]) -> dict[str, Any]:
    return made["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("sizes", "disk"),
    [((), 4), ((GIB,), 4), ((2 * GIB, GIB), 4), ((GIB,) * 4, 8), ((GIB,) * 20, 32)],
)
def test_the_disk_holds_every_file_that_the_spec_names(sizes, disk):
    """Versions on trial and those before, and some beside; a model more rarely makes new pods."""
    of = spec(*sizes)
    assert volumes.disk(of, SETTINGS) == disk * GIB
    made = rendered(of)
    amount = f"{disk}Gi"
    assert container(made)["resources"]["limits"]["ephemeral-storage"] == amount
    assert container(made)["resources"]["requests"]["ephemeral-storage"] == amount
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["volumes"][1] == {"name": "models", "emptyDir": {"sizeLimit": amount}}
    assert made["LimitRange"]["spec"]["limits"][0]["max"]["ephemeral-storage"] == amount
    hard = made["ResourceQuota"]["spec"]["hard"]
    assert hard["limits.ephemeral-storage"] == f"{3 * disk}Gi"


def test_a_file_takes_its_place_once():
    """However many versions name it; golden pictures take theirs, what is mounted takes none."""
    twice = spec(3 * GIB, 3 * GIB)
    (model,) = twice.models
    same = tuple(replace(one, digest="a" * 64) for one in model.versions)
    once = replace(twice, models=(replace(model, versions=same),))
    assert volumes.disk(once, SETTINGS) == 4 * GIB
    full = 4 * GIB - (256 << 20)
    assert volumes.disk(spec(full), SETTINGS) == 4 * GIB
    assert volumes.disk(spec(full, golden=("object:g",)), SETTINGS) == 8 * GIB
    assert volumes.disk(mounting("pvc://models", size=100 * GIB), SETTINGS) == 4 * GIB


def test_an_operators_disk_is_the_least():
    """And has to be one, or it could be doubled for ever."""
    assert volumes.disk(spec(GIB), replace(SETTINGS, disk_bytes=20 * GIB)) == 20 * GIB
    with pytest.raises(InvalidValueError, match="disk_bytes"):
        replace(SETTINGS, disk_bytes=0)


@pytest.mark.parametrize(
    ("storage", "source"),
    [
        ("pvc://models", {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}),
        (
            "image://registry.example/acme/models:3",
            {"image": {"reference": "registry.example/acme/models:3"}},
        ),
    ],
)
def test_a_storage_is_mounted_for_reading(storage, source):
    """Where a version needs it, and nothing of it is translated, written or copied."""
    made = rendered(mounting(storage))
    pod = made["Deployment"]["spec"]["template"]["spec"]
    name = "claim" if storage.startswith("pvc:") else "image"
    assert {"name": name, **source} in pod["volumes"]
    assert {
        "name": name,
        "mountPath": "/run/polyolo/storage",
        "readOnly": True,
    } in container(made)["volumeMounts"]
    assert "--storage" in container(made)["args"]
    text = made["ConfigMap"]["data"]["spec.json"]
    read = msgspec.json.decode(text, type=RuntimeSpec)
    assert json.loads(text)["models"][0]["versions"][0]["uri"] == "storage:city/v1.onnx"
    assert rendered(read) == made  # what is read back from there wants the same pods
    unused = rendered(spec(GIB, storage=storage))
    assert unused["Deployment"] == rendered(spec(GIB))["Deployment"]


def test_pods_that_lack_what_a_spec_needs_are_marked_otherwise():
    """Another storage, none any more, more disk: another mark, and so new pods."""
    marks = [
        rendered(one)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["polyolo/files"]
        for one in (spec(1), spec(5 * GIB), mounting("pvc://models"), mounting("image://x:1"))
    ]
    assert marks == ["4Gi", "8Gi", "4Gi pvc://models", "4Gi image://x:1"]


def test_a_quota_gets_narrow_when_the_larger_pods_have_gone():
    """Else the first of the smaller ones would not be let in, and the larger ones wait for it."""
    was = rendered(spec(20 * GIB))["ResourceQuota"]
    now = rendered(spec(GIB))["ResourceQuota"]
    assert now["spec"]["hard"]["requests.ephemeral-storage"] == "12Gi"

    def passable(used: dict[str, str]) -> dict[str, str]:
        live = {**was, "status": {"used": used}}
        return fences.passable(now, live)["spec"]["hard"]

    name = "requests.ephemeral-storage"
    assert passable({name: "32Gi"})[name] == "96Gi"
    assert passable({name: "36Gi"})["pods"] == "3"
    assert passable({name: "8Gi"})[name] == "12Gi"
    assert passable({})[name] == "12Gi"
    more = fences.passable(was, {**now, "status": {"used": {name: "12Gi"}}})
    assert more == was
