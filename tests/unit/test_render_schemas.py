"""Every rendered object against the published schemas of six releases and of the custom resources.

Strictly: a field that a schema does not name is refused, as a server with field validation does.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from polyolo.drivers.kubernetes.render import Features, render
from polyolo.drivers.kubernetes.settings import Egress, Load, Scaling
from polyolo.types import MOUNTED, Resources
from tests.cluster import schemas
from tests.cluster.clusters import SETTINGS, keys, spec_of

RICH = replace(
    SETTINGS,
    runtime_class="gvisor",
    priority_class="tenants",
    user_namespaces=True,
    node_selector={"pool": "polyolo"},
    tolerations=({"key": "polyolo", "operator": "Exists", "effect": "NoSchedule"},),
    gpu_slices={"0.5": "nvidia.com/mig-3g.40gb"},
    monitoring_namespace="monitoring",
    egress=(Egress(cidr="0.0.0.0/0"),),
)
MOUNTING = tuple(
    replace(one, versions=(replace(one.versions[0], uri=f"{MOUNTED}city/v1.onnx", size=5),))
    for one in spec_of("t_a").models
)
SPECS = (
    spec_of("t_a", models=MOUNTING, storage="pvc://models"),
    spec_of("t_a", models=MOUNTING, storage="image://registry.example/acme/models:3"),
    spec_of("t_a"),
    spec_of("t_a", replicas=0, max_replicas=4),
    spec_of("t_a", replicas=2, max_replicas=4, resources=Resources(cpus=1.5, gpus=0.5)),
)


def everything():
    for settings in (SETTINGS, RICH):
        for scaling in Scaling:
            for load in Load:
                for spec in SPECS:
                    chosen = replace(settings, scaling=scaling, load=load)
                    yield from render(spec, chosen, Features(monitors=True), keys("t_a"))


@pytest.mark.parametrize("release", schemas.RELEASES)
def test_every_object_fits_every_release(release):
    """With every setting, every way of scaling and every kind of plan."""
    found = [said for made in everything() if (said := schemas.complaint(made, release))]
    assert found == []


@pytest.mark.parametrize("release", schemas.RELEASES)
def test_the_schemas_are_strict(release):
    """A field that does not exist, or of another type, is refused in each kind of object."""
    kinds = {made["kind"]: made for made in everything()}
    assert len(kinds) == 14
    for kind, made in kinds.items():
        root = next(name for name in ("spec", "data", "metadata") if name in made)
        assert schemas.complaint({**made, "surplus": 1}, release), kind
        wrong = copy.deepcopy(made)
        wrong[root] = ["of another type"]
        assert schemas.complaint(wrong, release), kind
        if root == "spec":
            surplus = copy.deepcopy(made)
            surplus["spec"]["surplus"] = 1
            assert schemas.complaint(surplus, release), kind
