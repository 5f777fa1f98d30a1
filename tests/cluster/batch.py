"""The Job controller of the emulated cluster: a pod for each, its end told, its time bounded."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.cluster.apiserver import ApiServer
from tests.cluster.store import Key, Object

_CONTROLLER = "kube-controller-manager"


class Batch:
    """Brings about what Jobs say, one look at a time. In the server's thread."""

    def __init__(self, server: ApiServer) -> None:
        self._store = server.store
        self._began: dict[str, float] = {}
        self._over: dict[str, float] = {}
        self.forbidden: Callable[[Object], bool] = lambda _: False
        """Whether a pod may not be made, as where a quota is used up."""

    def turn(self) -> None:
        for job in list(self._store.of("jobs.batch")):
            uid, spec = job["metadata"]["uid"], job["spec"]
            if uid in self._over:
                if time.monotonic() - self._over[uid] >= spec["ttlSecondsAfterFinished"]:
                    self._store.delete(_key(job))
                continue
            pods = [one for one in self._store.of("pods", _home(job)) if _owner(one) == uid]
            late = (
                uid in self._began
                and time.monotonic() - self._began[uid] >= spec["activeDeadlineSeconds"]
            )
            if late:
                for one in pods:
                    self._store.delete(("pods", _home(job), one["metadata"]["name"]))
                self._end(job, "Failed", "DeadlineExceeded")
            elif uid not in self._began or (not pods and self.forbidden(job)):
                self._began.setdefault(uid, time.monotonic())
                if not self.forbidden(job):
                    self._make(job)
            elif not pods:
                self._end(job, "Failed", "BackoffLimitExceeded")
            elif pods[0].get("status", {}).get("phase") in ("Succeeded", "Failed"):
                well = pods[0]["status"]["phase"] == "Succeeded"
                self._end(job, "Complete" if well else "Failed", "")

    def _make(self, job: Object) -> None:
        name, home, template = job["metadata"]["name"], _home(job), job["spec"]["template"]
        labels = {
            **template["metadata"]["labels"],
            "batch.kubernetes.io/job-name": name,
            "batch.kubernetes.io/controller-uid": job["metadata"]["uid"],
        }
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        metadata = {
            "name": f"{name}-abcde",
            "namespace": home,
            "labels": labels,
            "ownerReferences": [owner],
        }
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self._store.create(("pods", home, metadata["name"]), made, _CONTROLLER)

    def _end(self, job: Object, what: str, reason: str) -> None:
        self._over[job["metadata"]["uid"]] = time.monotonic()
        condition = {"type": what, "status": "True", "reason": reason}
        self._store.change(
            _key(job),
            lambda made: made.update(status={"conditions": [condition]}),
            _CONTROLLER,
            "status",
        )


def _key(job: Object) -> Key:
    return "jobs.batch", _home(job), job["metadata"]["name"]


def _home(job: Object) -> str:
    home: str = job["metadata"]["namespace"]
    return home


def _owner(pod: Object) -> str:
    uid: str = pod["metadata"]["ownerReferences"][0]["uid"]
    return uid
