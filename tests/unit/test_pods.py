"""What the pods of a runtime are together, by what Kubernetes and they themselves say."""

from __future__ import annotations

from dataclasses import replace

from polyolo.drivers.kubernetes.naming import RELEASE
from polyolo.drivers.kubernetes.pods import Pod, State, read_pod, together
from polyolo.types import ModelStatus, Phase, RuntimeStatus

OLD = Pod(name="old", state=State.READY, address="10.0.0.1", made="2026-01-01T00:00:00Z")
NEW = Pod(
    name="new", state=State.READY, address="10.0.0.2", made="2026-01-02T00:00:00Z", release="2"
)


def said(*pods: Pod, generation: int = 7) -> dict[str, RuntimeStatus]:
    """Return what pods say that have this generation in force."""
    ready = RuntimeStatus(tenant="t_a", phase=Phase.READY, observed_generation=generation)
    return {
        pod.name: replace(ready, endpoints=(pod.endpoint,), release=pod.release) for pod in pods
    }


def test_a_pod_of_another_release_follows_no_generation():
    """It answers until its successor does, and is the first to go; whoever waits for the release
    goes on waiting."""
    both = together("t_a", [NEW, OLD], said(NEW, OLD), 7, "2")
    assert (both.phase, both.observed_generation) == (Phase.READY, 0)
    assert both.endpoints == (NEW.endpoint, OLD.endpoint)
    leaving = replace(OLD, state=State.LEAVING)
    after = together("t_a", [NEW, leaving], said(NEW), 7, "2")
    assert (after.observed_generation, after.release) == (7, "2")
    assert after.endpoints == (NEW.endpoint,)


def test_what_is_not_as_it_was_rendered_has_no_generation_in_force():
    """Whatever the pods say: the reconciler applies."""
    assert together("t_a", [OLD], said(OLD), 0, "").observed_generation == 0


def test_one_that_does_not_answer_is_told_of_beside_those_that_do():
    """READY with the others' endpoints; alone, FAILED."""
    mute = replace(OLD, name="mute", address="10.0.0.3")
    beside = together("t_a", [OLD, mute], said(OLD), 7, "")
    assert (beside.phase, beside.endpoints) == (Phase.READY, (OLD.endpoint,))
    assert beside.reason == "it does not answer"
    assert together("t_a", [mute], {}, 7, "").phase is Phase.FAILED


def test_the_release_is_read_from_the_pod():
    """By the annotation that its template had when it was made."""
    found = {
        "metadata": {
            "name": "p",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {RELEASE: "2"},
        },
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    pod = read_pod(found)
    assert (pod.state, pod.release, pod.made) == (State.READY, "2", "2026-01-01T00:00:00Z")


def test_one_that_is_not_ready_says_why():
    """Alone it is what it says; beside one that answers, what it failed to load is told too."""
    stuck = replace(OLD, name="stuck", state=State.STARTING, started=True)
    assert stuck.answers
    assert not replace(stuck, started=False).answers
    failed = ModelStatus(name="city", version=2, state="failed", reason="its sha256 differs")
    told = RuntimeStatus(
        tenant="t_a", phase=Phase.STARTING, models=(failed,), reason="city:2 failed to load"
    )
    alone = together("t_a", [stuck], {"stuck": told}, 7, "")
    assert (alone.phase, alone.reason) == (Phase.STARTING, "city:2 failed to load")
    both = together("t_a", [OLD, stuck], {**said(OLD), "stuck": told}, 7, "")
    assert (both.phase, both.endpoints) == (Phase.READY, (OLD.endpoint,))
    assert both.models == (failed,)
    early = replace(told, phase=Phase.READY, endpoints=("http://10.0.0.1:8080",))
    not_yet = together("t_a", [stuck], {"stuck": early}, 7, "")
    assert (not_yet.phase, not_yet.endpoints) == (Phase.STARTING, ())
