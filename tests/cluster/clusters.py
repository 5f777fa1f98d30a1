"""Drivers of emulated clusters, and specs, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyolo.drivers.kubernetes.cluster import at
from polyolo.drivers.kubernetes.driver import KubernetesDriver
from polyolo.drivers.kubernetes.naming import Object, place, selector
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.types import DetectionSettings, ModelSpec, RuntimeSpec, VersionSpec
from tests.cluster.apiserver import KEDA, MONITORING, ApiServer
from tests.cluster.node import Node

SETTINGS = ClusterSettings(
    scaling=Scaling.KEDA,
    image="polyolo-serving:1",
    artifacts="http://10.96.0.2:8702/models",
    scaler="dns:///polyolo-gateway-scaler.polyolo:8703",
    drain_s=1,
    leave_s=0,
)


def keys(tenant: str) -> dict[str, str]:
    """Return a tenant's secrets."""
    return {"POLYOLO_RUNTIME_TOKEN": f"{tenant}.token", "POLYOLO_ARTIFACT_KEY": f"{tenant}.key"}


def spec_of(tenant: str, generation: int = 1, **changes: Any) -> RuntimeSpec:
    """Return a spec with one model."""
    version = VersionSpec(version=1, digest="a" * 64, uri="models/a", classes=("board", "hole"))
    model = ModelSpec(
        name="one", current=1, versions=(version,), settings=DetectionSettings(confidence=0.4)
    )
    values: dict[str, Any] = {
        "tenant": tenant,
        "generation": generation,
        "default_model": "one",
        "models": (model,),
    }
    return RuntimeSpec(**(values | changes))


@dataclass
class Clustered:
    """An emulated cluster and its drivers."""

    server: ApiServer
    settings: ClusterSettings
    drivers: list[KubernetesDriver] = field(default_factory=list)

    def driver(self, answer_s: float = 5.0) -> KubernetesDriver:
        """Return another driver of the cluster, as after a restart."""
        marks = selector(self.settings.platform)
        cluster = at(self.server.url, answer_s=answer_s, selector=marks)
        self.drivers.append(KubernetesDriver(cluster, self.settings, keys))
        return self.drivers[-1]

    def writes(self, work: Callable[[], Any]) -> list[str]:
        """Return what a piece of work writes."""
        before = len(self.server.writes)
        work()
        return [f"{one.method} {one.path}" for one in self.server.writes[before:]]

    def there(self, tenant: str) -> dict[tuple[str, str], Object]:
        """Return a tenant's objects, without what differs from one run to the next."""
        home = place(tenant, self.settings.platform).namespace
        return {
            (key[0], key[2]): plain(found)
            for key, found in self.server.do(lambda: dict(self.server.store.objects)).items()
            if home in (key[1], key[2])
        }


def plain(found: Object) -> Object:
    """Return an object without uid, versions and owners."""
    given = ("uid", "resourceVersion", "generation", "managedFields", "creationTimestamp")
    metadata = {name: value for name, value in found["metadata"].items() if name not in given}
    return {**found, "metadata": metadata}


def with_namespace(server: ApiServer, name: str) -> None:
    """Make a namespace, as whoever installs does."""
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    server.do(lambda: server.store.create(("namespaces", "", name), made, "helm"))


@contextmanager
def inhabited(
    command: Sequence[str], root: Path, images: Mapping[str, Path] | None = None
) -> Iterator[tuple[Clustered, Node]]:
    """Run one whose pods are real processes. command, images: see Node. No KEDA is there, but a
    namespace for Jobs."""
    server = ApiServer(without=KEDA | MONITORING)
    node = Node(server, command, root, images)
    server.start()
    with_namespace(server, SETTINGS.jobs_namespace)
    made = Clustered(server, replace(SETTINGS, scaling=Scaling.CONTROL))
    try:
        yield made, node
    finally:
        for one in made.drivers:
            one.close()
        server.close()


@contextmanager
def clustered(
    *, without: set[str] = frozenset(), settings: ClusterSettings = SETTINGS, strict: str = ""
) -> Iterator[Clustered]:
    """Run an emulated cluster, without controllers. strict: release whose schemas it enforces."""
    server = ApiServer(without=without, strict=strict).start()
    made = Clustered(server, settings)
    try:
        yield made
    finally:
        for one in made.drivers:
            one.close()
        server.close()
        for one in made.drivers:  # their connections are gone now: nothing is left to the next test
            for thread in one._mirror.threads:
                thread.join(5)
