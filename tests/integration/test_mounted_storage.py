"""Model files in a volume of their tenant's: mounted by its pods, never seen by the platform."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from polyolo import web
from polyolo.control.settings import ControlSettings
from polyolo.drivers.kubernetes.naming import place
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.models import bundled, sample_boards
from tests.cluster.apiserver import KEDA, MONITORING, ApiServer
from tests.cluster.node import Node
from tests.integration.control_plane import Api, serving, until
from tests.integration.test_control_real_runtime import real

MODELS = [bundled("pcb", 1).read_bytes(), bundled("pcb", 2).read_bytes()]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in MODELS]
IMAGE = "registry.example/acme/models:3"


@dataclass
class Place:
    """A control plane whose runtimes are pods of an emulated cluster, real processes."""

    api: Api
    server: ApiServer
    node: Node
    root: Path

    def claim(self, tenant: str, name: str) -> None:
        """Make a PersistentVolumeClaim, as an operator does."""
        home = place(tenant, "polyolo").namespace
        made = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": home},
            "spec": {"accessModes": ["ReadOnlyMany"]},
        }
        key = "persistentvolumeclaims", home, name
        self.server.do(lambda: self.server.store.create(key, made, "kubectl"))

    def claims(self) -> list[str]:
        """Return the claims that are there."""
        found = self.server.do(lambda: self.server.store.of("persistentvolumeclaims"))
        return [one["metadata"]["name"] for one in found]

    def mounted(self) -> list[str]:
        """Return the kinds of storage that the pods mount which are not leaving."""
        pods = self.server.do(lambda: self.server.store.of("pods"))
        return [
            volume["name"]
            for one in pods
            if "deletionTimestamp" not in one["metadata"]
            for volume in one["spec"]["volumes"]
            if volume["name"] in ("claim", "image")
        ]

    async def version(self, key: str, number: int) -> dict:
        """Return how a version fares in the runtime."""
        status = (await self.api.ask("GET", "/tenants/me/runtime", key)).json()
        found = [
            one for one in status["models"] if (one["name"], one["version"]) == ("city", number)
        ]
        return found[0] if found else {"state": "", "reason": ""}

    async def settled(self, key: str, number: int, state: str, *, ready: bool = True) -> dict:
        """Wait for a version's state. ready: the runtime answers all the while."""

        async def look() -> dict | None:
            phase = (await self.api.ask("GET", "/tenants/me/runtime", key)).json()["phase"]
            assert phase == "ready" or not ready
            found = await self.version(key, number)
            return found if found["state"] == state else None

        return await until(look)


@contextmanager
def emulated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ApiServer, Node]]:
    """Run a cluster whose pods run the real runtime, and name it as kubectl's is named."""
    server = ApiServer(without=KEDA | MONITORING)
    node = Node(server, (sys.executable, "-m", "polyolo.serving"), root / "pods")
    server.start()
    (root / "kubeconfig").write_text(json.dumps(server.kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(root / "kubeconfig"))
    try:
        yield server, node
    finally:
        server.close()


@asynccontextmanager
async def controlled(chosen: ControlSettings, port: int = 0) -> AsyncIterator[Api]:
    """Run a control plane for pods, that hands out their files. port: 0 for any."""
    listener, stop = web.bind(host="127.0.0.1", port=port), asyncio.Event()
    cluster = ClusterSettings(
        image="polyolo-serving:test",
        artifacts=f"http://127.0.0.1:{listener.getsockname()[1]}/models",
        image_volumes=True,
        leave_s=0,
        drain_s=1,
    )
    async with serving(replace(chosen, cluster=cluster)) as api:
        files = asyncio.create_task(web.serve(api.control.files, listener, stop=stop))
        yield api
        stop.set()
        await files


@asynccontextmanager
async def platform(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    with emulated(root, monkeypatch) as (server, node):
        async with controlled(real(root / "home")) as api:
            yield Place(api, server, node, root)


async def register(place: Place, key: str, path: str, number: int, size: int = 0) -> httpx.Response:
    body = {"uri": path, "sha256": DIGESTS[number], "size": size or len(MODELS[number])}
    return await place.api.ask("POST", "/tenants/me/models/city/versions", key, json=body)


async def test_a_volume_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Registered by name, size and sha256, looked into by the runtime alone; what is wrong with a
    file costs that version only; taken back, it is no longer mounted and still there."""
    volume = tmp_path / "volume"
    (volume / "city").mkdir(parents=True)
    for number, content in enumerate(MODELS, 1):
        (volume / f"city/v{number}.onnx").write_bytes(content)
    async with platform(tmp_path, monkeypatch) as place:
        api = place.api
        place.node.volumes |= {"models": volume, IMAGE: volume}
        tenant, key = await api.tenant("acme")
        await api.ready(tenant)
        path = f"/tenants/{tenant}/storage"
        for wrong in ("pvc://", "pvc://Models", "pvc://a/b", "pvc://-a", "image://", "image://A b"):
            assert (await api.ask("PUT", path, json={"uri": wrong})).status_code == 422, wrong
        assert (await api.ask("PUT", path, json={"uri": "pvc://models"})).status_code == 200

        unsized = {"uri": "city/v1.onnx", "sha256": DIGESTS[0]}
        refused = await api.ask("POST", "/tenants/me/models/city/versions", key, json=unsized)
        assert (refused.status_code, "size" in refused.json()["detail"]) == (422, True)

        # Its claim is not there yet: what runs goes on until it is.
        made = asyncio.create_task(register(place, key, "city/v1.onnx", 0))
        await until(lambda: asyncio.to_thread(place.mounted))
        assert (await api.ask("GET", f"/tenants/{tenant}/runtime")).json()["phase"] == "ready"
        place.claim(tenant, "models")
        answer = await made
        assert answer.status_code == 201, answer.text
        assert (answer.json()["uri"], answer.json()["family"]) == ("city/v1.onnx", "")
        fares = await place.settled(key, 1, "ready")
        assert fares["family"]
        status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
        assert status["phase"] == "ready"
        endpoint = (await api.ready(tenant))["endpoints"][0]
        async with httpx.AsyncClient(base_url=endpoint) as runtime:
            found = await runtime.post("/v1/detect", content=sample_boards()[0].read_bytes())
        assert found.json()["model"] == {"name": "city", "version": 1}
        kept = [name for name, *_ in api.control.plane.store.everything() if "platform" not in name]
        assert kept == []
        clear = MODELS[0][2_000_000:2_000_200]
        places = [api.control.settings.home, tmp_path / "pods"]
        files = [file for place in places for file in place.rglob("*") if file.is_file()]
        assert not [file for file in files if clear in file.read_bytes()]

        for number, (file, which, size, why) in enumerate(
            (
                ("city/v1.onnx", 1, len(MODELS[0]), "sha256 differs"),
                ("city/v2.onnx", 1, 7, "that were registered"),
                ("city/v9.onnx", 1, 7, "cannot be read"),
            ),
            2,
        ):
            assert (await register(place, key, file, which, size)).status_code == 201
            use = {"version": number, "force": True}
            await api.ask("POST", "/tenants/me/models/city/use", key, json=use)
            fares = await place.settled(key, number, "failed")
            assert why in fares["reason"]
        assert (await register(place, key, "city/v2.onnx", 1)).status_code == 201  # as it is
        await api.ask(
            "POST", "/tenants/me/models/city/use", key, json={"version": 5, "force": True}
        )
        await place.settled(key, 5, "ready")

        assert (await api.ask("DELETE", path)).status_code == 409  # versions need it
        changed = {"uri": f"image://{IMAGE}"}
        assert (await api.ask("PUT", path, json=changed)).status_code == 200

        async def moved() -> bool:
            return await asyncio.to_thread(place.mounted) == ["image"]

        await until(moved)
        await place.settled(key, 5, "ready")
        assert (await api.ask("DELETE", "/tenants/me/models/city", key)).status_code == 204
        assert (await api.ask("DELETE", path)).status_code == 204

        async def free() -> bool:
            return not await asyncio.to_thread(place.mounted)

        await until(free)
        await api.ready(tenant)
        assert place.claims() == ["models"]
        assert len(list(volume.rglob("*.onnx"))) == 2


async def test_a_first_file_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The pod that cannot become ready with it says why, what ran before goes on, and the next
    version reaches that very pod."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "right.onnx").write_bytes(MODELS[0])
    async with platform(tmp_path, monkeypatch) as place:
        place.node.volumes["models"] = volume
        tenant, key = await place.api.tenant("acme")
        await place.api.ready(tenant)
        granted = {"uri": "pvc://models"}
        await place.api.ask("PUT", f"/tenants/{tenant}/storage", json=granted)
        place.claim(tenant, "models")
        wrong = asyncio.create_task(register(place, key, "wrong.onnx", 1))
        fares = await place.settled(key, 1, "failed")
        assert "wrong.onnx cannot be read in your storage" in fares["reason"]
        right = asyncio.create_task(register(place, key, "right.onnx", 0))

        async def there() -> bool:
            path = "/tenants/me/models/city/versions/2"
            return (await place.api.ask("GET", path, key)).status_code == 200

        await until(there)
        use = {"version": 2, "force": True}
        answer = await place.api.ask("POST", "/tenants/me/models/city/use", key, json=use)
        assert answer.status_code == 200, answer.text
        await place.settled(key, 2, "ready")
        assert await asyncio.to_thread(place.mounted) == ["claim"]
        assert {(await wrong).status_code, (await right).status_code} == {201}
