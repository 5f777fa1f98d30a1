"""The controls of the Pod Security Standards and the multi-tenancy benchmarks, one test a row.

docs/kubernetes-compliance.md names the field and the test of each; what it names is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyolo.drivers.kubernetes.render import Features, render
from polyolo.drivers.kubernetes.settings import Egress, Scaling
from polyolo.types import MOUNTED, ModelSpec, Resources, VersionSpec
from tests.cluster.clusters import SETTINGS, keys, spec_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/kubernetes-compliance.md"
VARIANTS = [
    (scaling, gpus, userns)
    for scaling in Scaling
    for gpus in (0.0, 1.0)
    for userns in (False, True)
]


@pytest.fixture(params=VARIANTS, ids=str)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    scaling, gpus, userns = request.param
    settings = replace(
        SETTINGS,
        scaling=scaling,
        user_namespaces=userns,
        monitoring_namespace="monitoring",
        egress=(Egress(cidr="0.0.0.0/0"),),
    )
    spec = spec_of("t_a", max_replicas=3, resources=Resources(gpus=gpus))
    return list(render(spec, settings, Features(monitors=True), keys("t_a")))


def of(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return of(objects, "Deployment")[0]["spec"]["template"]["spec"]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name in ("containers", "initContainers", "ephemeralContainers"):
        yield from pod(objects).get(name, ())


def hard(objects: list[dict[str, Any]]) -> dict[str, str]:
    return of(objects, "ResourceQuota")[0]["spec"]["hard"]


def test_host_process(objects):
    """No Windows host process."""
    assert "windowsOptions" not in pod(objects)["securityContext"]
    assert all("windowsOptions" not in one["securityContext"] for one in containers(objects))


def test_host_namespaces(objects):
    """Not the host's network, processes or IPC."""
    assert not any(pod(objects).get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))


def test_privileged(objects):
    """No privileged container."""
    assert not any(one["securityContext"].get("privileged") for one in containers(objects))


def test_capabilities(objects):
    """All dropped, none added."""
    for one in containers(objects):
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_volume_types(objects):
    """Only ConfigMaps, empty directories, and the one storage of the tenant's own, to be read."""
    kinds = {name for one in pod(objects)["volumes"] for name in one if name != "name"}
    assert kinds == {"configMap", "emptyDir"}
    version = VersionSpec(version=1, digest="a" * 64, uri=f"{MOUNTED}v1.onnx", size=5)
    models = (ModelSpec(name="one", current=1, versions=(version,)),)
    for storage, kind in (("pvc://models", "persistentVolumeClaim"), ("image://x:1", "image")):
        spec = spec_of("t_a", models=models, storage=storage)
        made = list(render(spec, SETTINGS, Features(), keys("t_a")))
        own = [one for one in pod(made)["volumes"] if not {"configMap", "emptyDir"} & set(one)]
        assert [set(one) for one in own] == [{"name", kind}]
        mounts = {one["name"]: one for one in pod(made)["containers"][0]["volumeMounts"]}
        assert mounts[own[0]["name"]]["readOnly"] is True


def test_quota_of_claims(objects):
    """None, but for the one of a tenant whose storage it is."""
    assert hard(objects)["persistentvolumeclaims"] == "0"
    for storage, count in (("pvc://models", "1"), ("image://x:1", "0")):
        made = render(spec_of("t_a", storage=storage), SETTINGS, Features(), keys("t_a"))
        assert hard(list(made))["persistentvolumeclaims"] == count


def test_host_ports(objects):
    """No port of the node."""
    assert not any("hostPort" in port for one in containers(objects) for port in one["ports"])


def test_probe_hosts(objects):
    """Probes and hooks ask the pod itself: they name no host."""
    for one in containers(objects):
        probes = [one[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert all(set(probe["httpGet"]) == {"path", "port"} for probe in probes)
        assert set(one["lifecycle"]["preStop"]) == {"sleep"}


def test_kernel_defaults(objects):
    """AppArmor, SELinux, /proc and sysctls as the node has them."""
    strange = {"appArmorProfile", "seLinuxOptions", "procMount", "sysctls"}
    assert not strange & set(pod(objects)["securityContext"])
    assert not any(strange & set(one["securityContext"]) for one in containers(objects))


def test_seccomp(objects):
    """The container runtime's own filter."""
    assert pod(objects)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any("seccompProfile" in one["securityContext"] for one in containers(objects))


def test_privilege_escalation(objects):
    """No new privileges."""
    for one in containers(objects):
        assert one["securityContext"]["allowPrivilegeEscalation"] is False


def test_non_root(objects):
    """A user of its own, that is not root, for pod and container."""
    context = pod(objects)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert min(context["runAsUser"], context["runAsGroup"], context["fsGroup"]) > 0
    for one in containers(objects):
        assert one["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in one["securityContext"]


def test_read_only_root(objects):
    """What can be written is two empty directories of bounded size, /tmp in memory."""
    for one in containers(objects):
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
    empty = [one["emptyDir"] for one in pod(objects)["volumes"] if "emptyDir" in one]
    assert [one.get("medium") for one in empty] == [None, "Memory"]
    assert all("sizeLimit" in one for one in empty)


def test_no_token(objects):
    """Neither the account nor the pod mounts one; the account has no role to use it for."""
    assert pod(objects)["automountServiceAccountToken"] is False
    assert of(objects, "ServiceAccount")[0]["automountServiceAccountToken"] is False
    assert not {one["kind"] for one in objects} & {
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
    }


def test_no_environment_of_others(objects):
    """No variables of other services."""
    assert pod(objects)["enableServiceLinks"] is False


def test_standard_is_enforced(objects):
    """Restricted, by a pinned version, on whatever else anybody starts there."""
    labels = of(objects, "Namespace")[0]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
        assert re.fullmatch(r"v1\.\d+", labels[f"pod-security.kubernetes.io/{mode}-version"])


def test_quota_of_resources(objects):
    """CPU, memory, disk and GPUs."""
    wanted = {"cpu", "memory", "ephemeral-storage"}
    for side in ("requests", "limits"):
        assert {f"{side}.{name}" for name in wanted} <= hard(objects).keys()
    assert "requests.nvidia.com/gpu" in hard(objects)


def test_quota_of_objects(objects):
    """Every kind that costs others something is counted, few of each; but never so few that what
    was counted and not made (a second kube-root-ca.crt) keeps ours from being made."""
    wanted = {"pods", "services", "configmaps", "secrets", "persistentvolumeclaims"}
    assert wanted <= hard(objects).keys()
    for kind in ("services", "configmaps", "secrets", "count/deployments.apps"):
        assert 1 + 2 < int(hard(objects)[kind]) <= 5


def test_no_ports_of_nodes(objects):
    """NodePort and LoadBalancer are refused by the quota, and not what our Service is."""
    assert hard(objects)["services.nodeports"] == "0"
    assert hard(objects)["services.loadbalancers"] == "0"
    assert all(one["spec"]["type"] == "ClusterIP" for one in of(objects, "Service"))


def test_limits_for_all(objects):
    """No container without limits, none beyond a runtime's."""
    limit = of(objects, "LimitRange")[0]["spec"]["limits"][0]
    assert limit["type"] == "Container"
    assert {"cpu", "memory", "ephemeral-storage"} <= limit["max"].keys() & limit["default"].keys()
    for one in containers(objects):
        assert one["resources"]["requests"]["memory"] == one["resources"]["limits"]["memory"]
        assert one["resources"]["limits"].keys() >= limit["max"].keys()


def test_network_is_closed(objects):
    """A policy for every pod of the namespace, both ways, that allows nothing."""
    closed = [one["spec"] for one in of(objects, "NetworkPolicy")]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in closed


def test_network_between_tenants(objects):
    """No way in or out names another tenant's namespace, or all of them."""
    for policy in of(objects, "NetworkPolicy"):
        spec = policy["spec"]
        peers = [peer for way in spec.get("ingress", ()) for peer in way["from"]]
        peers += [peer for way in spec.get("egress", ()) for peer in way["to"]]
        for peer in peers:
            if "ipBlock" in peer:
                assert peer["ipBlock"]["except"] == ["169.254.0.0/16"]
                continue
            home = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            assert home in ("polyolo", "monitoring")


def test_nothing_beyond_the_namespace(objects):
    """The namespace is the only object that is not in it."""
    namespace = of(objects, "Namespace")[0]["metadata"]["name"]
    others = [one for one in objects if one["kind"] != "Namespace"]
    assert {one["metadata"]["namespace"] for one in others} == {namespace}


def test_drain(objects):
    """A pod that leaves has the time to finish what it has in flight."""
    stop = pod(objects)["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(objects)["terminationGracePeriodSeconds"] > SETTINGS.drain_s + stop
    roll = of(objects, "Deployment")[0]["spec"]["strategy"]["rollingUpdate"]
    assert roll == {"maxSurge": 1, "maxUnavailable": 0}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("control", "---")]


def test_every_row_names_a_test_that_is_there_or_says_why_not():
    """A control is met by a field and a test, or declared not to apply, with the reason."""
    files = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    for row in rows():
        assert len(row) == 3, row
        named = set(re.findall(r"`(test_\w+)`", row[2]))
        if not named:
            assert row[1].startswith("does not apply"), row
        for name in named:
            assert any(f"def {name}(" in file for file in files), f"{name} is nowhere"
    assert len(rows()) >= 40


def test_every_check_has_a_row():
    """What is tested here is told there."""
    told = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    own = {
        "test_every_row_names_a_test_that_is_there_or_says_why_not",
        "test_every_check_has_a_row",
    }
    assert {name for name in globals() if name.startswith("test_")} - told == own
