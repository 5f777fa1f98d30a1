"""The Job of one task: valid, restricted, bounded; and what is made of its pod's end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from polyolo.control import conversion, intake
from polyolo.drivers.kubernetes.job import Task, ended, render
from polyolo.drivers.kubernetes.settings import JobSettings
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending
from tests.cluster import schemas
from tests.cluster.clusters import SETTINGS
from tests.unit.test_render_schemas import RICH

TASK = Task(
    name="job-0123456789abcdef",
    by="0" * 32,
    image="serving:1",
    key="ab" * 32,
    user=100_000_007,
    size=3_000_000,
    time_s=60.0,
    confinement=intake.CONFINEMENT,
)
RICH_JOBS = JobSettings(
    converter_image="ultralytics:1",
    runtime_class="kata",
    node_selector={"pool": "jobs"},
    tolerations=({"key": "jobs", "operator": "Exists"},),
)


def rendered(task: Task = TASK, jobs: JobSettings | None = None) -> dict[str, Any]:
    return render(task, SETTINGS, jobs or JobSettings())


def pod(made: dict[str, Any]) -> dict[str, Any]:
    return made["spec"]["template"]["spec"]


@pytest.mark.parametrize("release", schemas.RELEASES)
def test_a_job_fits_every_release(release):
    """With every setting, strictly."""
    for made in (rendered(), render(TASK, RICH, RICH_JOBS)):
        assert schemas.complaint(made, release) == ""
        assert schemas.complaint({**made, "surplus": 1}, release)


def test_a_jobs_pod_is_restricted():
    """As the standard wants it, and beyond: no token, no variable of others, /tmp in memory."""
    made = pod(rendered())
    assert made["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": TASK.user,
        "runAsGroup": TASK.user,
        "fsGroup": TASK.user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert made["automountServiceAccountToken"] is made["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(made)
    (container,) = made["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }
    assert made["volumes"] == [
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}
    ]
    assert [one["name"] for one in container["env"]] == ["POD_IP"]
    assert not {"envFrom", "lifecycle"} & set(container)
    assert "hostPort" not in container["ports"][0]


def test_a_job_has_an_end():
    """One pod, one try, a deadline, and nothing left of it where nobody deletes it."""
    spec = rendered()["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["activeDeadlineSeconds"] == 120 + 60 + 60
    assert spec["ttlSecondsAfterFinished"] == 60
    assert pod(rendered())["restartPolicy"] == "Never"
    slow = replace(TASK, time_s=conversion.TIME_S)
    assert rendered(slow)["spec"]["activeDeadlineSeconds"] == 480


def test_a_job_may_use_what_its_work_is_given():
    """And the file beside it, which lies in the pod's memory; it is sure of less."""
    (container,) = pod(rendered())["containers"]
    (other,) = pod(rendered(replace(TASK, size=TASK.size + (512 << 20))))["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "250m", "memory": "512Mi", "ephemeral-storage": "64Mi"},
        "limits": {"cpu": "1", "memory": "4163Mi", "ephemeral-storage": "64Mi"},
    }
    assert other["resources"]["limits"]["memory"] == "4675Mi"
    tiny = replace(TASK, confinement=Confinement(memory_bytes=1 << 20, cpus=0.1))
    (small,) = pod(rendered(tiny))["containers"]
    assert small["resources"]["requests"]["cpu"] == small["resources"]["limits"]["cpu"] == "100m"


def test_where_a_job_runs_is_the_operators_choice():
    """RuntimeClass, nodes and taints of its own; the runtimes' class where none is named."""
    chosen = pod(render(TASK, RICH, RICH_JOBS))
    assert chosen["runtimeClassName"] == "kata"
    assert chosen["nodeSelector"] == {"pool": "jobs"}
    assert chosen["tolerations"] == [{"key": "jobs", "operator": "Exists"}]
    assert chosen["hostUsers"] is False
    assert chosen["securityContext"]["runAsUser"] < 65_536
    assert pod(render(TASK, RICH, JobSettings()))["runtimeClassName"] == "gvisor"
    assert "runtimeClassName" not in pod(rendered())


def test_the_code_that_travels_is_always_the_same():
    """It is neither dated nor large: Linux takes arguments of up to 128 KiB."""
    command = pod(rendered())["containers"][0]["command"]
    assert command[:3] == ["python3", "-I", "-c"]
    assert command == pod(rendered())["containers"][0]["command"]
    assert len(json.dumps(rendered())) < 48 << 10


def test_kubernetes_expands_nothing_in_the_command():
    """$(NAME) would be a variable, and $$ one dollar."""
    assert not [word for word in pod(rendered())["containers"][0]["command"] if "$" in word]


def told(*, phase: str = "Running", metadata: dict | None = None, **more: Any) -> dict[str, Any]:
    return {"metadata": metadata or {}, "status": {"phase": phase, **more}}


def terminated(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"terminated": state}}]}


def test_what_a_program_did_to_its_pod_is_told():
    """Memory, a signal, a status: its own doing, whoever ended in its place."""
    killed = ended([told(phase="Failed", **terminated(reason="OOMKilled", exitCode=137))])
    assert killed is not None
    assert killed.ending is Ending.MEMORY
    signalled = ended([told(phase="Failed", **terminated(reason="Error", exitCode=137))])
    assert signalled is not None
    assert (signalled.ending, signalled.code) == (Ending.SIGNALLED, 9)
    early = ended([told(phase="Succeeded", **terminated(exitCode=0))])
    assert early is not None
    assert (early.ending, early.code) == (Ending.EXITED, 1)
    assert ended([told()]) is None


TAKEN = {
    "gone": [],
    "deleted": [told(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})],
    "deleted and ended": [
        told(metadata={"deletionTimestamp": "x"}, **terminated(reason="Error", exitCode=143))
    ],
    "evicted": [
        told(
            phase="Failed",
            conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "Evicted"}],
            **terminated(reason="Error", exitCode=137),
        )
    ],
    "failed": [told(phase="Failed", reason="NodeLost")],
}


@pytest.mark.parametrize("pods", TAKEN.values(), ids=TAKEN)
def test_what_others_did_to_a_pod_is_no_fault_of_the_files(pods):
    """The file is looked into again."""
    with pytest.raises(OSError, match="pod"):
        ended(pods)
