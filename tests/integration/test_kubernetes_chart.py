"""The chart, rendered by Helm itself: valid on every release, restricted, no right to spare."""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from polyolo import rpc
from polyolo.cli.cluster import in_cluster
from polyolo.control.plans import read
from polyolo.drivers.kubernetes.naming import OBJECT, place
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.errors import InvalidValueError
from polyolo.gateway.settings import Settings
from tests.cluster import schemas
from tests.cluster.apiserver import KEDA, MONITORING
from tests.cluster.clusters import SETTINGS, clustered, spec_of

CHART = Path(__file__).parents[2] / "deploy/helm/polyolo"
PLANS = """
[[plan]]
name = "vision"
max_replicas = 3
"""
EVERYTHING = {
    "images": {"pullSecrets": ["registry"], "releases": {"0.0.9": "polyolo-serving:0.0.9"}},
    "control": {
        "store": {"url": "s3://models"},
        "env": [{"name": "AWS_REGION", "value": "eu"}],
        "plans": PLANS,
        "options": ["--registration=closed"],
    },
    "gateway": {
        "autoscaling": {"enabled": False},
        "trustedProxies": ["10.0.0.0/8"],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    },
    "runtimes": {
        "scaling": "keda",
        "gpu": {"slices": {"0.5": "nvidia.com/mig-3g.40gb"}, "nodeSelector": {"gpu": "yes"}},
        "egress": [{"cidr": "10.0.0.0/8", "port": 9000}],
        "tolerations": [{"key": "polyolo", "operator": "Exists"}],
    },
    "certManager": {"enabled": True, "dnsNames": ["polyolo.example"]},
    "ingress": {"enabled": True, "host": "polyolo.example", "className": "x", "tlsSecret": "t"},
    "gatewayApi": {"enabled": True, "parents": [{"name": "g"}], "hostnames": ["polyolo.example"]},
    "monitoring": {"enabled": True, "dashboard": True, "labels": {"release": "prometheus"}},
    "descheduler": {"enabled": True},
}
FOREIGN = {"HTTPRoute", "GRPCRoute", "BackendTLSPolicy"}
"""Kinds of the Gateway API, whose schemas no package ships: their shape is tested by hand below."""

Objects = dict[tuple[str, str], dict[str, Any]]


def rendered(values: dict[str, Any] | None = None, namespace: str = "platform") -> Objects:
    with Chart.load(CHART) as chart:
        texts = chart.render(values=values or {}, name="polyolo", namespace=namespace)
    found = {}
    for name, text in texts.items():
        if name.endswith(".yaml"):
            for one in yaml.safe_load_all(text):
                if one:
                    key = one["kind"], one["metadata"]["name"]
                    assert key not in found, f"{key} twice"
                    found[key] = one
    return found


@pytest.fixture(scope="module", params=["defaults", "everything"])
def objects(request: pytest.FixtureRequest) -> Objects:
    return rendered(EVERYTHING if request.param == "everything" else None)


def test_helm_finds_nothing_to_complain_of():
    """`helm lint` with all values: only the icon is missing."""
    said = lint(str(CHART), EVERYTHING)
    assert said["errors"] == []
    assert [one["error"] for one in said["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("release", schemas.RELEASES)
def test_every_object_fits_every_release(objects, release):
    """Strictly, by the published schemas, but for those that no package ships."""
    known = [one for (kind, _), one in objects.items() if kind not in FOREIGN]
    assert [said for one in known if (said := schemas.complaint(one, release))] == []
    assert len(known) >= 18


def test_the_shape_of_what_has_no_schema_here():
    """The Gateway API's routes and policy: their required fields, and no other."""
    made = rendered(EVERYTHING)
    certificate = made["Certificate", "polyolo-gateway"]["spec"]
    assert certificate["dnsNames"] == ["polyolo-gateway.platform.svc", "polyolo.example"]
    for kind in ("HTTPRoute", "GRPCRoute"):
        route = made[kind, "polyolo-gateway"]
        assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
        assert set(route["spec"]) == {"parentRefs", "hostnames", "rules"}
        (rule,) = route["spec"]["rules"]
        assert set(rule) == {"matches", "backendRefs"}
        service = made["Service", rule["backendRefs"][0]["name"]]
        assert rule["backendRefs"][0]["port"] in [port["port"] for port in service["spec"]["ports"]]
    policy = made["BackendTLSPolicy", "polyolo-gateway"]["spec"]
    assert policy["targetRefs"] == [{"group": "", "kind": "Service", "name": "polyolo-gateway"}]
    assert set(policy["validation"]) == {"hostname", "caCertificateRefs"}
    assert policy["validation"]["hostname"] in certificate["dnsNames"]


def test_the_platforms_own_pods_are_restricted(objects):
    """What is asked of tenants' pods holds for ours; only control has a token."""
    for name in ("polyolo-control", "polyolo-gateway"):
        pod = objects["Deployment", name]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is (name == "polyolo-control")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        }
        assert container["resources"]["limits"]["memory"]
        assert pod["terminationGracePeriodSeconds"] > 30 + 5
        roll = objects["Deployment", name]["spec"]["strategy"]["rollingUpdate"]
        assert roll == {"maxSurge": 1, "maxUnavailable": 0}
        assert ("PodDisruptionBudget", name) in objects


def test_a_gateway_has_the_time_to_leave(objects):
    """As long as gRPC's connections live, then what is in flight; and nothing sleeps before it."""
    pod = objects["Deployment", "polyolo-gateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    leave = float(container["args"][container["args"].index("--leave") + 1])
    assert leave > rpc.RENEWED_S * 1.2
    assert pod["terminationGracePeriodSeconds"] > leave + Settings(control="", token="").drain_s
    assert "lifecycle" not in container


def test_tenants_policies_know_these_pods(objects):
    """The labels and ports by which a tenant's NetworkPolicy lets the platform in are these."""
    from polyolo.drivers.kubernetes.fences import policy

    cluster = replace(SETTINGS, namespace="platform", artifacts="http://10.0.0.1:8711/models")
    spec = policy(cluster, place("t_a", "polyolo"))["spec"]
    peers = [way["from"][0] for way in spec["ingress"]] + [spec["egress"][0]["to"][0]]
    for peer, name in zip(peers, ("gateway", "control", "control"), strict=True):
        labels = objects["Deployment", f"polyolo-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert peer["podSelector"]["matchLabels"].items() <= labels.items()
        namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        assert namespace == objects["Deployment", f"polyolo-{name}"]["metadata"]["namespace"]
    ports = objects["Deployment", "polyolo-control"]["spec"]["template"]["spec"]["containers"][0]
    assert spec["egress"][0]["ports"][0]["port"] in [p["containerPort"] for p in ports["ports"]]
    inside = objects["NetworkPolicy", "polyolo-control"]["spec"]["ingress"][1]
    wanted = inside["from"][0]["namespaceSelector"]["matchLabels"]
    assert wanted.items() <= place("t_a", "polyolo").labels.items()


def test_control_understands_what_the_chart_tells_it(objects, tmp_path, monkeypatch):
    """The document of the cluster is read by the very code that will, the address filled in."""
    file = tmp_path / "cluster.json"
    file.write_text(objects["ConfigMap", "polyolo-control"]["data"]["cluster.json"])
    with pytest.raises(InvalidValueError, match="POLYOLO_CONTROL_MODELS_SERVICE_HOST"):
        in_cluster("kubernetes", file)
    for address, host in (("10.96.7.7", "10.96.7.7"), ("fd00::7", "[fd00::7]")):
        monkeypatch.setenv("POLYOLO_CONTROL_MODELS_SERVICE_HOST", address)
        known = in_cluster("kubernetes", file)
        cluster = known["cluster"]
        assert isinstance(cluster, ClusterSettings)
        assert cluster.artifacts == f"http://{host}:8711/models"
        assert cluster.namespace == "platform"
        assert known["hand_out"] == ("", 8711)
    told = msgspec.json.decode(file.read_bytes())
    assert set(told) <= set(ClusterSettings.__dataclass_fields__)


def test_the_plans_arrive_as_they_were_written(tmp_path):
    """The very code that reads a plan file reads the chart's; without plans there is no option."""
    made = rendered(EVERYTHING)
    file = tmp_path / "plans.toml"
    file.write_text(made["ConfigMap", "polyolo-control"]["data"]["plans.toml"])
    assert [(plan.name, plan.max_replicas) for plan in read(file)] == [("vision", 3)]
    told = made["Deployment", "polyolo-control"]["spec"]["template"]["spec"]["containers"][0]
    assert "/etc/polyolo/plans.toml" in told["args"]
    usual = rendered()["Deployment", "polyolo-control"]["spec"]["template"]["spec"]
    assert "--plans" not in usual["containers"][0]["args"]


def test_the_commands_know_the_arguments(objects):
    """Every option that the chart gives is one of the command's."""
    for name, command in (("control", "control"), ("gateway", "gateway")):
        container = objects["Deployment", f"polyolo-{name}"]["spec"]["template"]["spec"]
        arguments = container["containers"][0]["args"]
        given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        source = (CHART.parents[2] / "src/polyolo/cli/serve.py").read_text()
        body = re.search(rf"^def {command}\((.*?)\) -> int:", source, re.MULTILINE | re.DOTALL)
        assert body is not None
        for option in given:
            assert re.search(rf"\b{option[2:].replace('-', '_')}\b", body[1]), option


WRONG = {
    "unknown": {"surplus": 1},
    "platform": {"platform": "Not_A_Label"},
    "too long": {"platform": "p" * 21},
    "replicas": {"control": {"replicas": 0}},
    "scaling": {"runtimes": {"scaling": "magic"}},
    "url": {"publicUrl": "http://clear.example"},
    "cidr": {"runtimes": {"egress": [{"cidr": "everywhere"}]}},
    "slice": {"runtimes": {"gpu": {"slices": {"half": "nvidia.com/mig-3g.40gb"}}}},
    "image": {"images": {"serving": "has spaces"}},
    "store": {"control": {"store": {"url": "ftp://x"}}},
    "injected": {"secret": 'x"\n---\nkind: Secret'},
    "no host": {"ingress": {"enabled": True}},
    "no parent": {"gatewayApi": {"enabled": True}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_values_that_make_no_sense_are_refused(values):
    """By the values' schema, or by the template that needs them: nothing is installed."""
    with pytest.raises(HelmError):
        installed(values)


def installed(values: dict[str, Any]) -> None:
    """Judge values as an installation does."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        chart.render(values=values, name="polyolo", namespace="platform")


def test_the_policy_keeps_control_at_home(objects):
    """What it may write is named by the prefix that tenants' namespaces have, and nothing else."""
    policy = objects["ValidatingAdmissionPolicy", "polyolo-stays-home"]["spec"]
    (validation,) = policy["validations"]
    assert ".startsWith('polyolo-')" in validation["expression"]
    assert place("t_a", "polyolo").namespace.startswith("polyolo-")
    assert (
        "system:serviceaccount:platform:polyolo-control"
        in policy["matchConditions"][0]["expression"]
    )
    assert policy["matchConstraints"]["resourceRules"][0]["operations"] == [
        "CREATE",
        "UPDATE",
        "DELETE",
    ]


def allowed(objects: Objects) -> set[tuple[str, str, str]]:
    """Return (verb, collection, name) of what the role allows; a name only where it names some."""
    found = set()
    for rule in objects["ClusterRole", "polyolo-control"]["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                collection = f"{resource}.{group}" if group else resource
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        found.add((verb, collection, name))
    return found


def lived(scaling: Scaling, without: set[str]) -> set[tuple[str, str, str]]:
    """Return what a driver asks for in its whole life: install, repair, wake, remove."""
    settings = replace(SETTINGS, scaling=scaling)
    with clustered(without=without, settings=settings) as cluster:
        driver = cluster.driver()
        home = place("t_a", "polyolo").namespace
        driver.apply(spec_of("t_a", max_replicas=3))
        for key in list(cluster.there("t_a")):
            where = "" if key[0] == "namespaces" else home

            def spoil(key: tuple[str, str] = (key[0], where), name: str = key[1]) -> None:
                store, whole = cluster.server.store, (*key, name)
                made = copy.deepcopy(store.get(whole))
                made.setdefault("spec", {})["foreign"] = "x"
                store.replace(whole, made, "kubectl-edit")

            if key[1] != "polyolo-deny-all":
                cluster.server.do(spoil)
        deadline = time.monotonic() + 10
        while any("foreign" in one.get("spec", {}) for one in cluster.there("t_a").values()):
            driver.apply(spec_of("t_a", generation=2, max_replicas=3))
            assert time.monotonic() < deadline
        for key in list(cluster.there("t_a")):
            if key[0] not in ("namespaces", "secrets") and key[1] == OBJECT:
                cluster.server.do(
                    lambda key=key: cluster.server.store.delete((key[0], home, key[1]))
                )
        assert driver.wait(10)
        driver.apply(spec_of("t_a", generation=3, max_replicas=3))
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "p",
                "namespace": home,
                "labels": dict(place("t_a", "polyolo").labels),
            },
        }
        cluster.server.do(lambda: cluster.server.store.create(("pods", home, "p"), pod, "k"))
        assert driver.wait(10)
        driver.apply(spec_of("t_a", generation=4, replicas=0, max_replicas=3))
        deadline = time.monotonic() + 10
        while "t_a" in driver.observe():
            driver.remove("t_a")
            assert time.monotonic() < deadline
        return set(cluster.server.used)


OTHER_WAYS = ("horizontalpodautoscalers.autoscaling", "scaledobjects.keda.sh")
"""Where one way of scaling was left for another one, there are things of the old one to delete."""


@pytest.mark.parametrize(
    ("scaling", "values", "without"),
    [
        (Scaling.CONTROL, {}, KEDA | MONITORING),
        (Scaling.HPA, {"runtimes": {"scaling": "hpa"}}, KEDA | MONITORING),
        (Scaling.KEDA, EVERYTHING, set()),
    ],
)
def test_the_role_is_as_small_as_it_can_be(scaling, values, without):
    """Everything that the driver does in its life is allowed, and nothing that it never does."""
    may = allowed(rendered(values))
    by_name = {(verb, collection) for verb, collection, name in may if name}
    did = {
        (verb, collection, name if (verb, collection) in by_name else "")
        for verb, collection, name in lived(scaling, without)
    }
    assert did - may == set()
    assert {one for one in may - did if one[1] not in OTHER_WAYS} == set()


def test_the_dashboard_is_one(objects):
    """JSON that Grafana takes, about metrics that exist."""
    file = json.loads((CHART / "files/dashboard.json").read_text())
    asked = {
        name
        for panel in file["panels"]
        for name in re.findall(r"polyolo_[a-z_]+", panel["targets"][0]["expr"])
    }
    telemetry = (CHART.parents[2] / "src/polyolo/telemetry.py").read_text()
    for name in asked:
        assert re.sub(r"_(total|bucket)$", "", name) in telemetry


def test_names_are_resolved_wherever_dns_listens():
    """Policies see the port of the pods behind the Service, which is not 53 everywhere."""
    for values, ports in (({}, [53, 5353]), ({"networkPolicy": {"dnsPorts": [1053]}}, [1053])):
        made = rendered(values)
        for name in ("polyolo-control", "polyolo-gateway"):
            way = made["NetworkPolicy", name]["spec"]["egress"][0]
            assert set(way) == {"ports"}
            told = [(one["port"], one["protocol"]) for one in way["ports"]]
            assert told == [(port, kind) for port in ports for kind in ("UDP", "TCP")]


def test_the_descheduler_may_move_a_runtime():
    """Its policy finds the pods that are rendered, and lets go of what it protects by default."""
    text = rendered(EVERYTHING)["ConfigMap", "polyolo-descheduler"]["data"]["policy.yaml"]
    policy = yaml.safe_load(text)
    (profile,) = policy["profiles"]
    plugins = {one["name"]: one["args"] for one in profile["pluginConfig"]}
    assert {*profile["plugins"]["balance"]["enabled"], "DefaultEvictor"} == set(plugins)
    objects = render(spec_of("t_a"), SETTINGS, Features(), {})
    (pods,) = (one["spec"]["template"] for one in objects if one["kind"] == "Deployment")
    evictor = plugins["DefaultEvictor"]
    assert evictor["labelSelector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert any("emptyDir" in volume for volume in pods["spec"]["volumes"])
    assert evictor["podProtections"] == {"defaultDisabled": ["PodsWithLocalStorage"]}
    sources = [one["source"] for one in policy["metricsProviders"]]
    assert [plugins["LowNodeUtilization"]["metricsUtilization"]["source"]] == sources
