"""Control and an autoscaler over the same runtime: neither undoes what the other decides.

The control plane is whole. The cluster is emulated, and so is KEDA: what it does to a Deployment.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from polyolo.control.settings import ControlSettings
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.types import Plan
from tests.cluster.apiserver import MONITORING, ApiServer
from tests.cluster.node import Node
from tests.cluster.store import Object
from tests.integration.control_plane import PARTS, Api, serving, settings, until
from tests.integration.test_sleeping import unused, wake


class Autoscaler:
    """What KEDA makes of its ScaledObjects, for a load that is the same for all of them."""

    def __init__(self, server: ApiServer) -> None:
        self.load = 0
        """Replicas that the requests in flight call for."""
        self._store = server.store
        server.services.append(self.run)

    async def run(self) -> None:
        while True:
            for found in self._store.of("scaledobjects.keda.sh"):
                bounds = found["spec"]
                least, most = bounds["minReplicaCount"], bounds["maxReplicaCount"]
                wanted = min(max(self.load, least), most)
                key = ("deployments.apps", found["metadata"]["namespace"], "polyolo-runtime")
                there = self._store.objects.get(key)
                if there is not None and there["spec"].get("replicas") != wanted:
                    scaled = partial(_scale, wanted)
                    self._store.change(key, scaled, "keda", "scale")
            await asyncio.sleep(0.02)


def _scale(number: int, deployment: Object) -> None:
    deployment["spec"]["replicas"] = number


@pytest.fixture
def autoscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Autoscaler]:
    """A cluster with KEDA, named by KUBECONFIG, whose pods are real processes."""
    server = ApiServer(without=MONITORING, strict="")
    Node(server, (sys.executable, str(PARTS / "small_runtime.py")), tmp_path / "pods")
    made = Autoscaler(server)
    server.start()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(server.kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    try:
        yield made
    finally:
        server.close()


def in_pods(home: Path, scaling: Scaling) -> ControlSettings:
    cluster = ClusterSettings(
        image="polyolo-serving:1",
        artifacts="http://127.0.0.1:1/models",
        scaling=scaling,
        scaler="dns:///scaler:1",
        drain_s=1,
        leave_s=0,
    )
    plans = (Plan(name="default", idle_s=0.1, max_replicas=3),)
    return settings(home, plans=plans, cluster=cluster)


@pytest.fixture
async def api(tmp_path: Path, autoscaler: Autoscaler) -> AsyncIterator[Api]:
    async with serving(in_pods(tmp_path / "home", Scaling.KEDA)) as api:
        yield api


async def copies(api: Api, tenant: str, number: int) -> None:
    """Wait until gateways are told of so many copies."""

    async def look() -> bool:
        answer = await wake(api, tenant)
        return len(answer["endpoints"]) == number

    await until(look)


async def test_what_the_autoscaler_adds_stays(api: Api, autoscaler: Autoscaler):
    """Gateways are told of every copy; those that go again are not brought back."""
    tenant, _ = await api.tenant("acme")
    assert (await wake(api, tenant))["phase"] == "ready"
    for load in (3, 2):
        autoscaler.load = load
        await copies(api, tenant, load)


async def test_a_runtime_sleeps_and_wakes_through_the_autoscaler(api: Api, autoscaler: Autoscaler):
    """Control says that nobody needs it, and the autoscaler takes the last copy away."""
    tenant, _ = await api.tenant("acme")
    await wake(api, tenant)
    autoscaler.load = 2
    await copies(api, tenant, 2)
    autoscaler.load = 0
    await asyncio.sleep(0)
    await unused(api, tenant)
    await api.phase(tenant, "asleep")
    status = await wake(api, tenant)
    assert (status["phase"], len(status["endpoints"])) == ("ready", 1)
