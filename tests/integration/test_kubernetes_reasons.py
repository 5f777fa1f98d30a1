"""Why a runtime does not run is told in words: what the scheduler, the kubelet or a quota said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from polyolo.drivers.kubernetes.naming import OBJECT, place
from polyolo.drivers.kubernetes.settings import ClusterSettings
from tests.cluster.apiserver import KEDA, MONITORING, ApiServer
from tests.cluster.store import Object
from tests.integration.control_plane import Api, serving, settings, until


class Trouble:
    """Controllers and a kubelet that bring no pod to run: they say why, in Kubernetes' words."""

    def __init__(self, server: ApiServer) -> None:
        self.pods: dict[str, Object] = {}
        """Status of the pod of each namespace."""
        self.deployments: dict[str, Object] = {}
        """Status of the Deployment of each namespace that gets no pod."""
        self._store = server.store
        server.services.append(self.run)

    async def run(self) -> None:
        while True:
            for home, status in self.deployments.items():
                self._tell(("deployments.apps", home, OBJECT), status)
            for home, status in self.pods.items():
                key, owner = ("pods", home, "pod"), ("deployments.apps", home, OBJECT)
                found, deployment = self._store.objects.get(key), self._store.objects.get(owner)
                if found is not None and "deletionTimestamp" in found["metadata"]:
                    self._store.drop(key)
                elif found is None and deployment is not None:
                    metadata = {**deployment["spec"]["template"]["metadata"], "name": key[2]}
                    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
                    made["metadata"]["namespace"] = home
                    self._store.create(key, {**made, "spec": {}}, "kube-controller-manager")
                    self._tell(key, status)
            await asyncio.sleep(0.02)

    def _tell(self, key: tuple[str, str, str], status: Object) -> None:
        found = self._store.objects.get(key)
        if found is not None and found.get("status") != status:
            self._store.change(key, lambda made: made.update(status=status), "kubelet", "status")


def waiting(reason: str, message: str, **more: Object) -> Object:
    """Return the status of a pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "runtime", "restartCount": 3, "state": state, **more}
    return {"phase": "Pending", "podIP": "127.0.0.1", "containerStatuses": [container]}


NO_ROOM = "0/1 nodes are available: 1 Insufficient cpu. preemption: not helpful for scheduling."
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": NO_ROOM,
        }
    ],
}
PULL = 'Back-off pulling image "polyolo-serving:2": not found'
ENDED = {"exitCode": 1, "reason": "Error", "message": "one line\npolyolo: no spec is there\n"}
PODS = {
    "unschedulable": (UNSCHEDULABLE, "starting", f"no node takes it: {NO_ROOM}"),
    "image": (
        waiting("ImagePullBackOff", PULL),
        "failed",
        f"its image cannot be pulled: {PULL}; it is started again",
    ),
    "crash": (
        waiting("CrashLoopBackOff", "back-off 5m0s", lastState={"terminated": ENDED}),
        "failed",
        "its process exited with status 1: polyolo: no spec is there; it is started again",
    ),
    "memory": (
        waiting(
            "CrashLoopBackOff",
            "back-off 5m0s",
            lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        ),
        "failed",
        "it used more memory than its plan gives, and was stopped; it is started again",
    ),
}
CLUSTER = ClusterSettings(image="polyolo-serving:2", artifacts="http://127.0.0.1:1/models")
QUOTA = 'pods "x" is forbidden: exceeded quota: polyolo-runtime, requested: pods=1, used: pods=3'


@asynccontextmanager
async def troubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Api, Trouble, ApiServer]]:
    """Run a control plane on a cluster where nothing gets to run."""
    server = ApiServer(without=KEDA | MONITORING, strict="")
    trouble = Trouble(server)
    server.start()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(server.kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    try:
        async with serving(settings(tmp_path / "home", cluster=CLUSTER)) as api:
            yield api, trouble, server
    finally:
        server.close()


async def test_a_tenant_reads_why_its_runtime_does_not_run(tmp_path, monkeypatch):
    """Each in its own words: no room, no image, it crashes, it is too large, the quota is full."""
    async with troubled(tmp_path, monkeypatch) as (api, trouble, _):
        wanted = {}
        for name, (status, phase, reason) in PODS.items():
            tenant, key = await api.tenant(name)
            trouble.pods[place(tenant, "polyolo").namespace] = status
            wanted[key] = (phase, reason)
        tenant, key = await api.tenant("quota")
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
        trouble.deployments[place(tenant, "polyolo").namespace] = {
            "conditions": [{**failure, "message": QUOTA}]
        }
        wanted[key] = ("failed", f"{QUOTA}; it is started again")
        for key, told in wanted.items():

            async def look(key: str = key, told: tuple[str, str] = told) -> bool:
                status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
                return (status["phase"], status["reason"]) == told

            await until(look)


async def test_what_is_in_the_way_is_told(tmp_path, monkeypatch):
    """Somebody else's object of the name that one of the runtime's has: which, and what to do."""
    async with troubled(tmp_path, monkeypatch) as (api, _, server):
        tenant, key = await api.tenant("acme")
        home, store = place(tenant, "polyolo").namespace, server.store

        async def applied() -> bool:
            return ("configmaps", home, OBJECT) in store.objects

        await until(applied)
        theirs = {"apiVersion": "v1", "kind": "ConfigMap", "data": {}}
        theirs["metadata"] = {"name": OBJECT, "namespace": home}

        def put() -> None:
            store.delete(("configmaps", home, OBJECT))
            store.create(("configmaps", home, OBJECT), theirs, "kubectl")

        server.do(put)

        async def told() -> bool:
            status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
            said = f"it could not be started: ConfigMap {home}/{OBJECT} exists and was not made by"
            return status["phase"] == "failed" and status["reason"].startswith(said)

        await until(told)
