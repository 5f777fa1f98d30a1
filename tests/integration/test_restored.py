"""A rehearsal of docs/operations.md: the database is lost, and comes back from its backup."""

from __future__ import annotations

import base64
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from polyolo.models import bundled, sample_boards
from tests.integration import postgres
from tests.integration.control_plane import Api
from tests.integration.test_control_real_runtime import real
from tests.integration.test_mounted_storage import controlled, emulated


async def boxes(api: Api, tenant: str) -> int:
    """Return how many boxes the tenant's model finds, asked at the runtime's address."""
    (endpoint,) = (await api.ready(tenant))["endpoints"]
    async with httpx.AsyncClient(base_url=endpoint) as runtime:
        picture = sample_boards()[0].read_bytes()
        answer = await runtime.post("/v1/detect", params={"model": "city"}, content=picture)
    assert answer.status_code == 200, answer.text
    return len(answer.json()["detections"])


async def test_a_lost_database_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another control plane with the same keys goes on with the pods that are there, and what was
    changed after the backup is no more."""
    monkeypatch.setenv("POLYOLO_MASTER_KEY", base64.b64encode(bytes(range(32))).decode())
    models = "/tenants/me/models/city/versions"
    with postgres.server() as server, emulated(tmp_path, monkeypatch) as (cluster, _):
        monkeypatch.setenv(postgres.VARIABLE, str(server.directory))
        first = replace(real(tmp_path / "first"), store=str(tmp_path / "store"))
        name, backup = postgres.database_of(str(first.home)), server.directory / "backup"

        def pods() -> list[str]:
            found = cluster.do(lambda: cluster.store.of("pods"))
            return [one["metadata"]["uid"] for one in found]

        async with controlled(first) as api:
            tenant, key = await api.tenant("acme")
            await api.ready(tenant)
            pushed = await api.ask("POST", models, key, content=bundled("pcb", 1).read_bytes())
            assert pushed.status_code == 201, pushed.text

        server.run("pg_dump", "--format=custom", f"--file={backup}", name)
        shutil.copytree(tmp_path / "store", tmp_path / "saved")

        async with controlled(first) as api:
            before = await boxes(api, tenant)
            settings = {"max_detections": 1}
            path = "/tenants/me/models/city/settings"
            assert (await api.ask("PATCH", path, key, json=settings)).status_code == 200
            assert await boxes(api, tenant) == 1 < before
            running = pods()

        server.run("dropdb", name)
        shutil.rmtree(tmp_path / "store")
        server.run("createdb", name)
        server.run("pg_restore", "--exit-on-error", f"--dbname={name}", backup)
        # Runtimes may know a later generation than the backup does, and would not listen.
        again = "UPDATE runtimes SET generation = generation + 1000000"
        server.run("psql", "--quiet", f"--dbname={name}", f"--command={again}")
        (tmp_path / "saved").rename(tmp_path / "store")

        second = replace(real(tmp_path / "second"), store=first.store, database=first.database)
        async with controlled(second) as api:
            await api.control.plane.in_force(tenant)
            assert await boxes(api, tenant) == before
            assert pods() == running
