"""One RuntimeSpec as Kubernetes objects: what is in them, and that it follows from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from polyolo.drivers.kubernetes import quantity
from polyolo.drivers.kubernetes.naming import place, tenant_of
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.drivers.kubernetes.settings import (
    ClusterSettings,
    Egress,
    Load,
    Scaling,
    read_settings,
)
from polyolo.errors import InvalidValueError
from polyolo.types import Resources
from tests.cluster.clusters import SETTINGS, keys, spec_of

Objects = dict[tuple[str, str], dict[str, Any]]


def rendered(settings: ClusterSettings = SETTINGS, *, tenant: str = "t_a", **spec: Any) -> Objects:
    made = render(spec_of(tenant, **spec), settings, Features(monitors=True), keys(tenant))
    return {(one["kind"], one["metadata"]["name"]): one for one in made}


def pod(objects: Objects) -> dict[str, Any]:
    return objects["Deployment", "polyolo-runtime"]["spec"]["template"]["spec"]


def container(objects: Objects) -> dict[str, Any]:
    return pod(objects)["containers"][0]


def test_the_fences_stand_before_what_they_hold():
    """Namespace first, the closed door second, the pods after everything that confines them."""
    kinds = [one["kind"] for one in render(spec_of("t_a"), SETTINGS, Features(), keys("t_a"))]
    assert kinds[:2] == ["Namespace", "NetworkPolicy"]
    fences = {"ResourceQuota", "LimitRange", "NetworkPolicy", "ServiceAccount", "Secret"}
    assert max(map(kinds.index, fences)) < kinds.index("Deployment")


def test_the_same_is_rendered_from_the_same():
    """Nothing of it comes from the clock, chance or order."""
    assert rendered() == rendered()
    one = rendered()["ConfigMap", "polyolo-runtime"]["metadata"]["annotations"]
    two = rendered(generation=2)["ConfigMap", "polyolo-runtime"]["metadata"]["annotations"]
    assert one != two


def test_a_new_generation_starts_no_pod_anew():
    """Settings and models are pushed; only what a process is started with makes new pods."""
    template = rendered()["Deployment", "polyolo-runtime"]["spec"]["template"]
    later = rendered(generation=2, models=())["Deployment", "polyolo-runtime"]["spec"]["template"]
    assert template == later


def test_names_never_collide_and_always_fit():
    """Ids that a name cannot tell apart get names of their own, each at most 63 characters."""
    ids = ["t_a", "T_a", "t-a", "t_A", "a" * 64, "a" * 63, "_", "-", "--", "t_", "A-" * 32]
    for platform in ("p", "p" * 20):
        names = {place(one, platform).namespace for one in ids}
        assert len(names) == len(ids)
        assert all(len(name) <= 63 and name.strip("-") == name for name in names)
    assert place("t_a", "one").namespace != place("t_a", "two").namespace
    assert len({place(f"t_{number}", "polyolo").user for number in range(1000)}) == 1000


def test_only_all_marks_together_make_an_object_ours():
    """One label more or less, another place or another platform: not ours."""
    for made in rendered().values():
        assert tenant_of(made, "polyolo") == "t_a"
        assert tenant_of(made, "another") is None
        for name in made["metadata"]["labels"]:
            if name.startswith(("polyolo/", "app.kubernetes.io/managed-by")):
                labels = {n: v for n, v in made["metadata"]["labels"].items() if n != name}
                assert tenant_of(with_metadata(made, labels=labels), "polyolo") is None
        where = "name" if made["kind"] == "Namespace" else "namespace"
        assert tenant_of(with_metadata(made, **{where: "default"}), "polyolo") is None
    assert tenant_of({"metadata": {"name": "x"}}, "polyolo") is None


def with_metadata(made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**made, "metadata": {**made["metadata"], **changes}}


def test_the_document_names_files_as_pods_reach_them():
    """Paths and names in the store become URLs; what is a URL already stays."""
    spec = spec_of("t_a")
    uris = {
        "/store/" + "a" * 64: "http://10.96.0.2:8702/models/" + "a" * 64,
        "object:t_a/" + "a" * 64: "http://10.96.0.2:8702/models/t_a/" + "a" * 64,
        "s3://theirs/model.onnx": "s3://theirs/model.onnx",
    }
    for uri, wanted in uris.items():
        version = replace(spec.models[0].versions[0], uri=uri, golden=(uri,))
        models = (replace(spec.models[0], versions=(version,)),)
        data = rendered(models=models)["ConfigMap", "polyolo-runtime"]["data"]["spec.json"]
        found = json.loads(data)["models"][0]["versions"][0]
        assert (found["uri"], found["golden"]) == (wanted, [wanted])


def test_a_document_that_no_configmap_holds_is_told():
    """Not the API server's 413, but what to do about it."""
    spec = spec_of("t_a")
    version = replace(spec.models[0].versions[0], classes=tuple("x" * 100 for _ in range(20_000)))
    with pytest.raises(OSError, match="delete models, or shorten class names"):
        rendered(models=(replace(spec.models[0], versions=(version,)),))


def test_resources_are_those_of_the_plan():
    """Requests, limits, quota and range come from one value; nothing is left unlimited."""
    made = rendered(resources=Resources(cpus=1.5, memory_bytes=3 << 30), replicas=2, max_replicas=3)
    assert container(made)["resources"] == {
        "requests": {"cpu": "1500m", "memory": "3Gi", "ephemeral-storage": "4Gi"},
        "limits": {"cpu": "1500m", "memory": "3Gi", "ephemeral-storage": "4Gi"},
    }
    hard = made["ResourceQuota", "polyolo-runtime"]["spec"]["hard"]
    assert (hard["pods"], hard["limits.memory"], hard["requests.cpu"]) == ("5", "15Gi", "7500m")
    assert hard["requests.nvidia.com/gpu"] == "0"
    free = rendered(resources=Resources())
    assert container(free)["resources"]["requests"]["cpu"] == "250m"
    assert container(free)["resources"]["limits"]["cpu"] == "4"


@pytest.mark.parametrize(
    ("gpus", "resource", "count"),
    [
        (1.0, "nvidia.com/gpu", "1"),
        (2.0, "nvidia.com/gpu", "2"),
        (0.1, "nvidia.com/mig-1g.10gb", "1"),
        (0.5, "nvidia.com/mig-3g.40gb", "1"),
        (0.8, "nvidia.com/gpu", "1"),
    ],
)
def test_a_share_of_a_gpu_is_a_slice_or_a_whole(gpus, resource, count):
    """The smallest slice that is large enough, its nodes and their taints with it."""
    settings = replace(
        SETTINGS,
        gpu_slices={"0.5": "nvidia.com/mig-3g.40gb", "0.14": "nvidia.com/mig-1g.10gb"},
        node_selector={"pool": "polyolo"},
        gpu_node_selector={"accelerator": "h100"},
        gpu_tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),
    )
    made = rendered(settings, resources=Resources(gpus=gpus))
    assert container(made)["resources"]["limits"][resource] == count
    assert pod(made)["nodeSelector"] == {"pool": "polyolo", "accelerator": "h100"}
    assert pod(made)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    hard = made["ResourceQuota", "polyolo-runtime"]["spec"]["hard"]
    granted = {name: value for name, value in hard.items() if "nvidia" in name and value != "0"}
    assert granted == {f"requests.{resource}": str(int(count) * 3)}
    without = rendered(settings)
    assert pod(without)["nodeSelector"] == {"pool": "polyolo"}
    assert "tolerations" not in pod(without)


def test_where_and_how_pods_run_is_the_operators_word():
    """Runtime class, priority, user namespaces and the image of a pinned release."""
    settings = replace(
        SETTINGS,
        runtime_class="gvisor",
        priority_class="tenants",
        user_namespaces=True,
        releases={"0.2.0": "registry/polyolo-serving@sha256:aa"},
    )
    made = rendered(settings, release="0.2.0")
    assert pod(made)["runtimeClassName"] == "gvisor"
    assert pod(made)["priorityClassName"] == "tenants"
    assert pod(made)["hostUsers"] is False
    assert 0 < pod(made)["securityContext"]["runAsUser"] < 65536
    assert container(made)["image"] == "registry/polyolo-serving@sha256:aa"
    for release in ("0.3.0", "x y", "../x"):
        with pytest.raises(OSError, match="no image"):
            rendered(settings, release=release)


def test_each_way_of_scaling_sets_the_number_in_one_place():
    """Control in the Deployment, KEDA and a HorizontalPodAutoscaler in theirs, never two."""
    for scaling, replicas, number, kind in (
        (Scaling.CONTROL, 2, 2, None),
        (Scaling.CONTROL, 0, 0, None),
        (Scaling.HPA, 2, None, "HorizontalPodAutoscaler"),
        (Scaling.HPA, 0, 0, None),
        (Scaling.KEDA, 2, None, "ScaledObject"),
        (Scaling.KEDA, 0, None, "ScaledObject"),
    ):
        settings = replace(SETTINGS, scaling=scaling)
        made = rendered(settings, replicas=replicas, max_replicas=5)
        assert made["Deployment", "polyolo-runtime"]["spec"].get("replicas") == number
        kinds = {name for name, _ in made} & {"HorizontalPodAutoscaler", "ScaledObject"}
        assert kinds == ({kind} if kind else set())
    keda = rendered(replicas=0, max_replicas=5)["ScaledObject", "polyolo-runtime"]["spec"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (0, 5)
    assert keda["triggers"][0]["metadata"] == {
        "scalerAddress": SETTINGS.scaler,
        "tenant": "t_a",
        "target": "4",
    }
    by_load = replace(SETTINGS, scaling=Scaling.HPA, load=Load.IN_FLIGHT)
    hpa = rendered(by_load, max_replicas=5)["HorizontalPodAutoscaler", "polyolo-runtime"]["spec"]
    assert hpa["metrics"][0]["pods"]["metric"]["name"] == "polyolo_requests_in_flight"


def test_the_only_ways_in_are_the_platforms():
    """Gateways, control, and whoever reads metrics where the operator names one."""
    settings = replace(SETTINGS, monitoring_namespace="monitoring")
    ways = rendered(settings)["NetworkPolicy", "polyolo-runtime"]["spec"]["ingress"]
    froms = [(one["from"][0].get("podSelector", {}).get("matchLabels", {})) for one in ways]
    assert [one.get("app.kubernetes.io/component") for one in froms] == ["gateway", "control", None]
    assert all(one["from"][0]["namespaceSelector"]["matchLabels"] for one in ways)
    assert [[port["port"] for port in one["ports"]] for one in ways] == [
        [8080, 8081],
        [8080],
        [8080],
    ]


def test_no_way_out_leads_to_the_nodes_credentials():
    """However wide a network the operator opens, link-local addresses stay out of it."""
    settings = replace(
        SETTINGS, egress=(Egress(cidr="0.0.0.0/0"), Egress(cidr="::/0"), Egress(cidr="10.0.0.0/8"))
    )
    ways = rendered(settings)["NetworkPolicy", "polyolo-runtime"]["spec"]["egress"]
    blocks = [one["to"][0]["ipBlock"] for one in ways[1:]]
    assert blocks == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]},
        {"cidr": "::/0", "except": ["fd00:ec2::254/128"]},
        {"cidr": "10.0.0.0/8"},
    ]
    assert (
        ways[0]["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "control"
    )
    assert [port["port"] for port in ways[0]["ports"]] == [8702]


def test_new_keys_make_new_pods_and_are_in_the_secret_only():
    """A rotated key reaches the process; no other object tells anything of it."""
    made = render(spec_of("t_a"), SETTINGS, Features(), {"POLYOLO_ARTIFACT_KEY": "hush" * 8})
    told = [one["kind"] for one in made if "hushhush" in json.dumps(one) or "aHVzaGh1" in str(one)]
    assert told == ["Secret"]
    before, after = (
        render(spec_of("t_a"), SETTINGS, Features(), {"KEY": value})[10]["spec"]["template"]
        for value in ("one", "two")
    )
    assert before != after


@pytest.mark.parametrize(
    ("amount", "cores", "size"),
    [(0.25, "250m", "1Mi"), (2.0, "2", "1Mi"), (0.1234, "124m", "1Mi"), (1 << 30, None, "1Gi"),
     (3 << 29, None, "1536Mi"), (0, "0", "0"), (2_000_000_000, None, "1908Mi")],
)  # fmt: skip
def test_amounts_are_written_as_kubernetes_writes_them(amount, cores, size):
    """Else what was applied would read back as something else."""
    if cores is not None:
        assert quantity.cores(amount) == cores
    assert quantity.size(amount) == size


def test_settings_come_from_a_document(tmp_path):
    """What does not fit is told by the file's name and the field."""
    file = tmp_path / "cluster.json"
    file.write_text('{"image": "x", "artifacts": "http://a", "scaling": "keda", "scaler": "s:1"}')
    assert read_settings(file).scaling is Scaling.KEDA
    for text, said in (
        ('{"image": 1, "artifacts": "x"}', "image"),
        ('{"image": "x"}', "artifacts"),
        ('{"image": "x", "artifacts": "x", "platform": "Not A Label"}', "platform"),
        ('{"image": "x", "artifacts": "x", "scaling": "keda"}', "scaler"),
        ("{", "cluster.json"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidValueError, match=said):
            read_settings(file)
