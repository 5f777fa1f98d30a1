"""The namespace of the Jobs, as the chart makes it: room for what control does, no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polyolo.control import conversion, gate, intake
from polyolo.drivers.kubernetes import fences
from polyolo.drivers.kubernetes.cluster import at
from polyolo.drivers.kubernetes.job import ACCOUNT, render
from polyolo.drivers.kubernetes.jobs import Jobs, mine
from polyolo.drivers.kubernetes.naming import DENY
from polyolo.drivers.kubernetes.settings import JobSettings
from polyolo.sandbox.job import memory_file
from tests.cluster import schemas
from tests.cluster.clusters import SETTINGS, inhabited
from tests.cluster.defaults import defaulted
from tests.integration.test_kubernetes_chart import EVERYTHING, Objects, installed, rendered
from tests.unit.test_job import TASK

HOME = "polyolo-jobs"
CLUSTER = replace(SETTINGS, namespace="platform")


@pytest.fixture(scope="module")
def objects() -> Objects:
    return rendered()


def test_the_chart_and_control_mean_the_same_namespace(objects):
    """Its name, its account's; restricted like a tenant's; nobody takes it for a tenant's."""
    assert CLUSTER.jobs_namespace == HOME
    labels = objects["Namespace", HOME]["metadata"]["labels"]
    assert fences.namespace(CLUSTER)["metadata"]["labels"].items() <= labels.items()
    assert labels["app.kubernetes.io/managed-by"] != "polyolo"
    assert not [name for name in labels if name.startswith("polyolo/")]
    account = objects["ServiceAccount", ACCOUNT]
    assert (account["metadata"]["namespace"], account["automountServiceAccountToken"]) == (
        HOME,
        False,
    )


def test_a_jobs_pod_reaches_nothing_and_only_control_reaches_it(objects):
    """No policy opens a way out; the one way in is the receiver's port, from control's own pods."""
    policies = [
        one["spec"]
        for (kind, _), one in objects.items()
        if kind == "NetworkPolicy" and one["metadata"]["namespace"] == HOME
    ]
    assert len(policies) == 2
    assert not any("egress" in one for one in policies)
    closed = objects["NetworkPolicy", DENY]["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (opened,) = [one for one in policies if one != closed]
    template = render(TASK, CLUSTER, JobSettings())["spec"]["template"]
    assert opened["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (way,) = opened["ingress"]
    (peer,) = way["from"]
    control = objects["Deployment", "polyolo-control"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "platform"}
    assert control["metadata"]["namespace"] == "platform"
    labels = control["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "control"
    port = template["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert [one["port"] for one in way["ports"]] == [port]
    ways = objects["NetworkPolicy", "polyolo-control"]["spec"]["egress"]
    (there,) = [
        one
        for one in ways
        if one.get("to", [{}])[0].get("namespaceSelector", {}).get("matchLabels", {})
        == {"kubernetes.io/metadata.name": HOME}
    ]
    assert [one["port"] for one in there["ports"]] == [port]
    target = there["to"][0]["podSelector"]["matchLabels"]
    assert target.items() <= template["metadata"]["labels"].items()


def amount(written: str) -> float:
    units = {"m": 1e-3, "Mi": 1 << 20, "Gi": 1 << 30}
    for unit, factor in units.items():
        if written.endswith(unit):
            return float(written.removesuffix(unit)) * factor
    return float(written)


def test_what_control_asks_for_is_allowed_and_bounded(objects):
    """The largest file of the usual plans fits; what all may take together is a number."""
    (limit,) = objects["LimitRange", ACCOUNT]["spec"]["limits"]
    hard = objects["ResourceQuota", ACCOUNT]["spec"]["hard"]
    most = 512 << 20
    converter = conversion._confinement(conversion.Converter(), most)
    for confinement, size in (
        (intake.CONFINEMENT, most),
        (gate._CONFINEMENT, 2 * most),
        (converter, 2 * most),
    ):
        task = replace(TASK, confinement=confinement, size=size)
        (container,) = render(task, CLUSTER, JobSettings())["spec"]["template"]["spec"][
            "containers"
        ]
        for kind, upper in limit["max"].items():
            needed = amount(container["resources"]["limits"][kind])
            assert needed <= amount(upper), kind
            assert needed * 8 <= amount(hard[f"limits.{kind}"]), kind
            asked = amount(container["resources"]["requests"][kind])
            assert asked * 8 <= amount(hard[f"requests.{kind}"]), kind
    assert hard["pods"] == "8"
    assert hard["count/jobs.batch"] == "24"
    nothing = {name for name, count in hard.items() if count == "0"}
    assert {"services", "persistentvolumeclaims", "secrets", "count/deployments.apps"} <= nothing
    for one in ("ResourceQuota", "LimitRange"):
        assert schemas.complaint(defaulted(objects[one, ACCOUNT]), "1.36") == ""


WRONG: dict[str, dict[str, Any]] = {
    "image": {"jobs": {"converterImage": "has spaces"}},
    "memory": {"jobs": {"memoryGiB": 1}},
    "unknown": {"jobs": {"surplus": 1}},
    "none at all": {"jobs": {"most": 0}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_values_of_the_jobs_are_checked(values):
    """By the values' schema, before anything is installed."""
    from helm_python.errors import HelmError

    with pytest.raises(HelmError):
        installed(values)


def test_without_jobs_there_is_no_trace_of_them():
    """No namespace, no right, no way there, and control is told nothing of them."""
    made = rendered({"jobs": {"enabled": False}})
    assert not [one for one in made.values() if HOME in str(one["metadata"].get("namespace"))]
    assert ("Namespace", HOME) not in made
    assert HOME not in str(made["NetworkPolicy", "polyolo-control"])
    assert '"jobs"' not in made["ConfigMap", "polyolo-control"]["data"]["cluster.json"]
    everything = rendered(EVERYTHING | {"jobs": {"converterImage": "ultralytics:1"}})
    known = everything["ConfigMap", "polyolo-control"]["data"]["cluster.json"]
    assert '"converter_image": "ultralytics:1"' in known


def test_the_role_of_the_jobs_is_as_small_as_it_can_be(objects, tmp_path):
    """A life of Jobs uses each of its verbs, pods' list of the cluster-wide role, and no other."""
    may = {
        (verb, f"{resource}.{group}")
        for rule in objects["Role", ACCOUNT]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    with inhabited(("false",), tmp_path) as (cluster, _), memory_file([b"x"]) as file:
        settings = replace(CLUSTER, jobs=JobSettings(start_s=60.0))
        jobs = Jobs(at(cluster.server.url, answer_s=5.0, selector=mine("here")), settings, "here")
        jobs.sweep()
        echo = jobs.program("serving:1", ("python3", "-I", "-S", "-c", "print('well')"))
        assert echo(file, intake.CONFINEMENT, time_s=20.0).output == b"well\n"
        jobs.close()
        did = {(verb, collection) for verb, collection, _ in cluster.server.used}
    assert did == may | {("list", "pods")}
    rules = objects["ClusterRole", "polyolo-control"]["rules"]
    assert any("pods" in rule["resources"] and "list" in rule["verbs"] for rule in rules)
    binding = objects["RoleBinding", ACCOUNT]
    assert binding["metadata"]["namespace"] == HOME
    assert binding["subjects"][0]["name"] == "polyolo-control"
