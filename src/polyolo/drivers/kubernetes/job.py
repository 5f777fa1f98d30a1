"""The Job of one task: rendered, and its pod's end read. No string of a tenant's is in it."""

from __future__ import annotations

import io
import math
import zipfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polyolo
from polyolo.drivers.kubernetes import quantity, restricted
from polyolo.drivers.kubernetes.naming import Object
from polyolo.drivers.kubernetes.settings import ClusterSettings, JobSettings
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome
from polyolo.sandbox.receiver import ADDRESS, PORT

ACCOUNT = "polyolo-job"
"""ServiceAccount of the pods, and the name by which NetworkPolicies know them."""
BY = "polyolo/by"
"""Label: which control plane made it, as a digest."""
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label that Kubernetes gives to a Job's pods."""
MOVE_S = 60.0
"""Seconds for the file to get there, and for what becomes of it to come back."""

_KEPT_S = 60  # a Job that nobody deleted; its control is gone
_OWN_BYTES = 64 << 20  # of the receiver, and its code in /tmp
_DISK_BYTES = 64 << 20  # nothing is written to a disk but the log, which is empty
_MODULES = (
    *("__init__", "sandbox/__init__", "sandbox/command", "sandbox/confinement", "sandbox/inner"),
    *("sandbox/job", "sandbox/landlock", "sandbox/layers", "sandbox/receiver", "sandbox/seccomp"),
    "sandbox/trial",
)
"""What the receiver imports. It travels with the Job, so that no image has to hold it, and none
holds that of another release."""
_START = """\
import base64, os, sys, tempfile
code = os.path.join(tempfile.mkdtemp(), "polyolo.zip")
with open(code, "wb") as file:
    file.write(base64.b64decode(sys.argv[2]))
sys.path.insert(0, code)
from polyolo.sandbox.receiver import main
main(sys.argv[1])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one Job is for."""

    name: str
    """Of the Job: nobody's yet."""
    by: str
    """Who makes it, as a label's value."""
    image: str
    key: str
    """What both ends prove themselves with, hex digits."""
    user: int
    size: int
    """Bytes of the files that pass, there and back."""
    time_s: float
    confinement: Confinement


def render(task: Task, settings: ClusterSettings, jobs: JobSettings) -> Object:
    """Return the Job."""
    labels = {
        "app.kubernetes.io/name": ACCOUNT,
        "app.kubernetes.io/instance": settings.platform,
        BY: task.by,
    }
    allowed = task.confinement
    pod = {
        **restricted.pod(
            task.user,
            account=ACCOUNT,
            user_namespaces=settings.user_namespaces,
            runtime_class=jobs.runtime_class or settings.runtime_class,
            nodes=jobs.node_selector,
            taints=jobs.tolerations,
        ),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [_container(task, settings, jobs)],
        "volumes": [restricted.tmp(allowed.scratch_bytes + (1 << 20))],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": task.name, "namespace": settings.jobs_namespace, "labels": labels},
        "spec": {
            "completions": 1,
            "parallelism": 1,
            # Once: what was sent is gone with the pod, and control asks again itself.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": math.ceil(jobs.start_s + MOVE_S + task.time_s),
            "ttlSecondsAfterFinished": _KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _container(task: Task, settings: ClusterSettings, jobs: JobSettings) -> dict[str, Any]:
    allowed = task.confinement
    memory = allowed.memory_bytes + task.size + _OWN_BYTES
    most_cpus = allowed.cpus or settings.most_cpus
    disk = {"ephemeral-storage": quantity.size(_DISK_BYTES)}
    least = {
        "cpu": quantity.cores(min(jobs.least_cpus, most_cpus)),
        "memory": quantity.size(min(jobs.least_memory_bytes, memory)),
    }
    most = {"cpu": quantity.cores(most_cpus), "memory": quantity.size(memory)}
    return {
        "name": "program",
        "image": task.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python3", "-I", "-c", _START, task.key, _code()],
        # The pod's own address only: nothing of what runs there speaks to itself.
        "env": [{"name": ADDRESS, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "task", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": {**least, **disk}, "limits": {**most, **disk}},
        "securityContext": dict(restricted.CONTAINER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [dict(restricted.TMP)],
    }


@cache
def _code() -> str:
    """Return the receiver's code, an archive in letters; always the same one."""
    root = Path(polyolo.__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in _MODULES:
            entry = zipfile.ZipInfo(f"polyolo/{name}.py")  # without the time
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, (root / f"{name}.py").read_bytes())
    return b64encode(packed.getvalue()).decode()  # whose letters Kubernetes leaves as they are


def ended(pods: Sequence[Mapping[str, Any]]) -> Outcome | None:
    """Return what became of a program whose pod said nothing any more; None as long as it runs.

    pods: the Job's. Raises OSError when it was ended from outside, through no fault of its own.
    """
    if not pods:
        raise OSError("its pod is gone")
    metadata, status = pods[0]["metadata"], pods[0].get("status", {})
    for one in status.get("conditions", ()):
        if one.get("type") == "DisruptionTarget" and one.get("status") == "True":
            raise OSError(f"its pod was taken away: {one.get('reason', '')}")
    for container in status.get("containerStatuses", ()):
        end = container.get("state", {}).get("terminated")
        if end and end.get("reason") == "OOMKilled":
            return _end(Ending.MEMORY)
        if end and not metadata.get("deletionTimestamp"):
            number = int(end.get("exitCode", 1)) - 128
            return _end(Ending.SIGNALLED, number) if number > 0 else _end(Ending.EXITED, 1)
    if metadata.get("deletionTimestamp") or status.get("phase") == "Failed":
        raise OSError(f"its pod was ended: {status.get('reason') or 'deleted'}")
    return None


def _end(ending: Ending, code: int = 0) -> Outcome:
    return Outcome(ending=ending, code=code, output=b"", errors=b"")
