"""What people do to a tenant's objects by hand is undone; what is not ours is left alone."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from polyolo.drivers.kubernetes import driver as module
from polyolo.drivers.kubernetes.naming import OBJECT, place
from polyolo.drivers.kubernetes.settings import Scaling
from polyolo.types import Phase, Resources
from tests.cluster.apiserver import KEDA, MONITORING
from tests.cluster.clusters import SETTINGS, Clustered, clustered, spec_of

HOME = place("t_a", "polyolo").namespace
NUMBERS = itertools.count(1)
COLLECTIONS = (
    "resourcequotas",
    "limitranges",
    "networkpolicies.networking.k8s.io",
    "serviceaccounts",
    "configmaps",
    "services",
    "poddisruptionbudgets.policy",
    "deployments.apps",
    "scaledobjects.keda.sh",
    "podmonitors.monitoring.coreos.com",
    "prometheusrules.monitoring.coreos.com",
)


@pytest.fixture
def cluster() -> Iterator[Clustered]:
    with clustered() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Clustered]:
    """A cluster with a driver, for tests of one tenant each."""
    with clustered() as made:
        made.driver()
        yield made


def by_hand(
    cluster: Clustered, collection: str, alter: Callable[[dict], object], where: str = HOME
) -> None:
    """Change an object as `kubectl edit` does."""

    def work() -> None:
        store = cluster.server.store
        home = "" if collection == "namespaces" else where
        name = where if collection == "namespaces" else OBJECT
        made = copy.deepcopy(store.get((collection, home, name)))
        alter(made)
        store.replace((collection, home, name), made, "kubectl-edit")

    cluster.server.do(work)


def repaired(cluster: Clustered, work: Callable[[str], object]) -> list[str]:
    """Have work done on a settled tenant; return what is written until it is as it was.

    work: is given the tenant's namespace.
    """
    driver, tenant = cluster.drivers[0], f"t_{next(NUMBERS)}"
    driver.apply(spec_of(tenant))
    before = cluster.there(tenant)
    work(place(tenant, "polyolo").namespace)
    assert driver.wait(10) == {tenant}
    written = cluster.writes(lambda: driver.apply(spec_of(tenant)))
    assert cluster.there(tenant) == before
    assert cluster.writes(lambda: driver.apply(spec_of(tenant))) == []
    return written


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_a_deleted_object_comes_back(shared, collection):
    """Exactly the object that was deleted is made again."""

    def work(home: str) -> None:
        shared.server.do(lambda: shared.server.store.delete((collection, home, OBJECT)))

    written = repaired(shared, work)
    assert len(written) == (3 if collection == "deployments.apps" else 1)


CHANGES = {
    "pod security off": ("namespaces", lambda o: o["metadata"]["labels"].pop(
        "pod-security.kubernetes.io/enforce")),
    "a way in": ("networkpolicies.networking.k8s.io", lambda o: o["spec"]["ingress"].append(
        {"from": [{"namespaceSelector": {}}]})),
    "a way out": ("networkpolicies.networking.k8s.io", lambda o: o["spec"]["egress"].append(
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})),
    "more quota": ("resourcequotas", lambda o: o["spec"]["hard"].update(pods="100")),
    "quota for more": ("resourcequotas", lambda o: o["spec"]["hard"].pop("services.nodeports")),
    "another image": ("deployments.apps", lambda o: pod(o)["containers"][0].update(image="evil")),
    "a second container": ("deployments.apps", lambda o: pod(o)["containers"].append(
        {"name": "evil", "image": "evil"})),
    "the host's network": ("deployments.apps", lambda o: pod(o).update(hostNetwork=True)),
    "a variable": ("deployments.apps", lambda o: pod(o)["containers"][0].update(
        env=[{"name": "LD_PRELOAD", "value": "/tmp/evil.so"}])),
    "a volume": ("deployments.apps", lambda o: pod(o)["volumes"].append(
        {"name": "evil", "hostPath": {"path": "/"}})),
    "root": ("deployments.apps", lambda o: pod(o)["securityContext"].update(runAsUser=0)),
    "a token": ("serviceaccounts", lambda o: o.update(automountServiceAccountToken=True)),
    "a port of each node": ("services", lambda o: o["spec"].update(type="NodePort")),
    "another document": ("configmaps", lambda o: o["data"].update({"spec.json": "{}"})),
    "a second document": ("configmaps", lambda o: o["data"].update(more="x")),
}  # fmt: skip


def pod(found: dict) -> dict:
    return found["spec"]["template"]["spec"]


@pytest.mark.parametrize(("collection", "alter"), CHANGES.values(), ids=CHANGES)
def test_a_change_by_hand_is_undone(shared, collection, alter):
    """Be it a value of ours or something put beside it."""
    repaired(shared, lambda home: by_hand(shared, collection, alter, home))


def test_it_is_told_by_observe(cluster):
    """While something is not as it should be no generation is in force, so it is applied again."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a", replicas=0))
    assert driver.observe()["t_a"].observed_generation == 1
    by_hand(cluster, "configmaps", lambda found: found["data"].update({"spec.json": "{"}))
    assert driver.wait(10) == {"t_a"}
    assert driver.observe()["t_a"].observed_generation == 0
    driver.apply(spec_of("t_a", replicas=0))
    assert driver.observe()["t_a"].phase is Phase.ASLEEP
    assert driver.observe()["t_a"].observed_generation == 1


def test_a_lost_secret_is_found_out_in_time(cluster, monkeypatch):
    """Secrets are not watched; they are looked at now and then."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a", replicas=0))
    cluster.server.do(lambda: cluster.server.store.delete(("secrets", HOME, OBJECT)))
    assert driver.observe()["t_a"].observed_generation == 1
    monkeypatch.setattr(module, "SECRET_S", 0.0)
    assert driver.observe()["t_a"].observed_generation == 0
    driver.apply(spec_of("t_a", replicas=0))
    assert driver.observe()["t_a"].observed_generation == 1


def test_marks_of_others_and_the_number_of_an_autoscaler_stay(cluster):
    """Labels of other tools, and replicas that KEDA set, are nobody's business here."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a"))

    def work() -> None:
        store = cluster.server.store
        key = ("deployments.apps", HOME, OBJECT)
        store.change(key, lambda one: one["spec"].update(replicas=7), "keda", "scale")

    cluster.server.do(work)
    by_hand(cluster, "namespaces", lambda one: one["metadata"]["labels"].update(team="vision"))
    driver.wait(10)
    assert cluster.writes(lambda: driver.apply(spec_of("t_a"))) == []
    driver.apply(spec_of("t_a", generation=2))
    there = cluster.there("t_a")
    assert there["deployments.apps", OBJECT]["spec"]["replicas"] == 7
    assert there["namespaces", HOME]["metadata"]["labels"]["team"] == "vision"


def test_an_autoscaler_finds_the_number_that_control_wanted_first(cluster):
    """A tenant that sleeps is not woken by being installed, nor by being applied again."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a", replicas=0))
    driver.apply(spec_of("t_a", generation=2, replicas=0))
    assert cluster.there("t_a")["deployments.apps", OBJECT]["spec"]["replicas"] == 0


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/managed-by": "polyolo"}])
def test_a_namespace_that_is_not_ours_is_never_adopted(cluster, labels):
    """The same name, made by somebody else: refused, unchanged, not removed."""
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME, "labels": labels}}
    cluster.server.do(
        lambda: cluster.server.store.create(("namespaces", "", HOME), made, "kubectl")
    )
    before = cluster.there("t_a")
    driver = cluster.driver()
    with pytest.raises(OSError, match="not made by this platform"):
        driver.apply(spec_of("t_a"))
    driver.remove("t_a")
    assert driver.observe() == {}
    assert cluster.there("t_a") == before


def test_an_object_of_others_in_our_namespace_is_not_adopted(cluster):
    """A ConfigMap of our name that somebody made is told, not overwritten."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a"))
    strange = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"theirs": "x"}}
    strange["metadata"] = {"name": OBJECT, "namespace": HOME}

    def work() -> None:
        store = cluster.server.store
        store.delete(("configmaps", HOME, OBJECT))
        store.create(("configmaps", HOME, OBJECT), strange, "kubectl")

    cluster.server.do(work)
    assert driver.wait(10) == {"t_a"}
    with pytest.raises(OSError, match="not made by this platform"):
        driver.apply(spec_of("t_a"))
    assert cluster.there("t_a")["configmaps", OBJECT]["data"] == {"theirs": "x"}


def test_the_fences_stand_until_the_last_pod_has_ended(cluster):
    """A pod that drains is as closed in as before, however often its end is asked for."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a"))
    metadata = {"name": "p", "namespace": HOME, "labels": dict(place("t_a", "polyolo").labels)}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    pod["status"] = {"podIP": "127.0.0.9"}  # it runs: its end takes time
    store = cluster.server.store
    cluster.server.do(lambda: store.create(("pods", HOME, "p"), pod, "k"))
    assert driver.wait(10) == {"t_a"}
    for _ in range(3):
        driver.remove("t_a")
        assert driver.observe()["t_a"].phase is Phase.STOPPING
    there = cluster.there("t_a")
    assert ("deployments.apps", OBJECT) not in there
    assert "deletionTimestamp" not in there["namespaces", HOME]["metadata"]
    assert ("networkpolicies.networking.k8s.io", "polyolo-deny-all") in there
    cluster.server.do(lambda: store.drop(("pods", HOME, "p")))
    deadline = time.monotonic() + 10
    while "t_a" in driver.observe():
        driver.remove("t_a")
        assert time.monotonic() < deadline
    assert cluster.there("t_a") == {}


def test_two_platforms_share_a_cluster(cluster):
    """The same tenant id on both: neither sees, changes or removes what is the other's."""
    other = Clustered(cluster.server, replace(SETTINGS, platform="second"))
    mine, theirs = cluster.driver(), other.driver()
    try:
        mine.apply(spec_of("t_a"))
        theirs.apply(spec_of("t_a"))
        before = other.there("t_a")
        deadline = time.monotonic() + 10
        while "t_a" in mine.observe():
            mine.remove("t_a")
            assert time.monotonic() < deadline
        assert cluster.there("t_a") == {}
        assert other.there("t_a") == before
    finally:
        theirs.close()


def test_what_keda_makes_is_left_alone_and_what_we_no_longer_want_goes():
    """KEDA's own HorizontalPodAutoscaler carries our labels, and an owner; ours has none."""
    with clustered() as cluster:
        cluster.driver().apply(spec_of("t_a"))
        keda = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": copy.deepcopy(
                cluster.there("t_a")["scaledobjects.keda.sh", OBJECT]["metadata"]
            ),
        }
        keda["metadata"] |= {
            "name": "keda-hpa",
            "ownerReferences": [
                {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": OBJECT,
                 "uid": "1"}
            ],
        }  # fmt: skip
        key = ("horizontalpodautoscalers.autoscaling", HOME, "keda-hpa")
        cluster.server.do(lambda: cluster.server.store.create(key, keda, "keda"))
        driver = cluster.driver()
        assert cluster.writes(lambda: driver.apply(spec_of("t_a"))) == []
        marked = {"scalingModifiers": {}}  # as KEDA writes an object back, with what is empty
        by_hand(cluster, "scaledobjects.keda.sh", lambda o: o["spec"]["advanced"].update(marked))
        assert driver.wait(10) == {"t_a"}
        more = cluster.writes(lambda: driver.apply(spec_of("t_a", replicas=0)))
        assert not [one for one in more if one.startswith("PUT")], "nothing of it is undone"
    hpa = replace(SETTINGS, scaling=Scaling.HPA)
    with clustered(without=KEDA | MONITORING, settings=hpa) as cluster:
        driver = cluster.driver()
        driver.apply(spec_of("t_a", max_replicas=3))
        assert ("horizontalpodautoscalers.autoscaling", OBJECT) in cluster.there("t_a")
        driver.apply(spec_of("t_a", generation=2, replicas=0, max_replicas=3))
        there = cluster.there("t_a")
        assert ("horizontalpodautoscalers.autoscaling", OBJECT) not in there
        assert there["deployments.apps", OBJECT]["spec"]["replicas"] == 0
        driver.apply(spec_of("t_a", generation=3, max_replicas=3))
        assert cluster.there("t_a")["deployments.apps", OBJECT]["spec"]["replicas"] == 1


def test_a_part_that_is_demanded_and_missing_is_told():
    """KEDA is to scale, and is not there: a sentence at the start, no runtime that never scales."""
    with (
        clustered(without=KEDA) as cluster,
        pytest.raises(OSError, match="knows no ScaledObject"),
    ):
        cluster.driver()


def test_a_quota_gets_narrow_when_the_larger_pods_have_gone_by_its_own_count(cluster):
    """Until then the new, smaller pods could not be let in beside them; nothing is written."""
    driver = cluster.driver()
    large = Resources(memory_bytes=8 << 30)
    driver.apply(spec_of("t_a", resources=large))
    key = "resourcequotas", HOME, OBJECT

    def used(amount: str) -> None:
        def work() -> None:
            cluster.server.store.change(
                key, lambda made: made.update(status={"used": {"limits.memory": amount}}),
                "kube-controller-manager", "status")  # fmt: skip

        cluster.server.do(work)

    def hard() -> str:
        found = cluster.there("t_a")["resourcequotas", OBJECT]
        return found["spec"]["hard"]["limits.memory"]

    used("8Gi")
    small = spec_of("t_a", 2, resources=Resources(memory_bytes=2 << 30))
    driver.apply(small)
    assert hard() == "24Gi"
    written = cluster.writes(lambda: driver.apply(small))
    assert written == []
    assert driver.observe(["t_a"])["t_a"].observed_generation == 0
    used("2Gi")
    driver.apply(small)
    assert hard() == "6Gi"


def test_what_a_webhook_changes_is_let_be_until_something_else_is_rendered(cluster):
    """It is not fought over, and the next change is made all the same."""

    def webhook(made: dict) -> None:
        if made["kind"] == "LimitRange":
            made["spec"]["limits"][0]["max"]["cpu"] = "64"

    keep = cluster.server.store._keep
    cluster.server.store._keep = lambda key, made, *more: keep(key, (webhook(made), made)[1], *more)
    driver = cluster.driver()
    driver.apply(spec_of("t_a"))
    assert cluster.writes(lambda: driver.apply(spec_of("t_a"))) == []
    more = spec_of("t_a", 2, resources=Resources(memory_bytes=8 << 30))
    driver.apply(more)
    limit = cluster.there("t_a")["limitranges", OBJECT]["spec"]["limits"][0]["max"]
    assert limit == {"cpu": "64", "memory": "8Gi", "ephemeral-storage": "4Gi"}
    assert cluster.writes(lambda: driver.apply(more)) == []
