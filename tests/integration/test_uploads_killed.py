"""Killed, or out of space, on a model file's way in and out: nothing half, nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyolo.control.adoption import adopt
from polyolo.control.artifacts import Artifacts
from polyolo.control.objects import DirectoryStore
from polyolo.control.service import uploads
from polyolo.types import Plan
from tests.integration.control_plane import PARTS, Api, serving, settings, until

KILLED = Path(__file__).with_name("killed_uploads.py")
INSPECT = PARTS / "small_inspect.py"


def test_killed_at_any_step(tmp_path: Path):
    """At every fifth file, process and transaction: a restart brings the work to its end."""
    done = subprocess.run(
        [sys.executable, str(KILLED), str(tmp_path), str(INSPECT), "2", "5"],
        capture_output=True,
        text=True,
        timeout=110,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert [point for point in points if point["wrong"]] == []
    places = " ".join(point["at"] for point in points)
    for kind in ("commit", "os.remove", "open"):
        assert kind in places


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root to mount")
def test_a_full_disk(tmp_path: Path):
    """507 in words, nothing kept, everybody served on; with room again, the same push works."""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


async def on_a_small_disk(directory: Path) -> None:
    """Fill a disk of 12 MB with models, and make room again."""
    home = directory / "disk" / "home"
    chosen = settings(home, plans=(Plan(name="default", min_replicas=1),))
    async with serving(chosen) as api:
        _, key = await api.tenant("acme")
        _, other = await api.tenant("other")

        async def push(name: str, seed: int) -> int:
            content = b"model " + random.Random(seed).randbytes(1_500_000)
            path = f"/tenants/me/models/{name}/versions"
            answer = await api.ask("POST", path, key, content=content)
            if answer.status_code != 201:
                assert answer.status_code == 507, answer.text
                assert "disk" in answer.json()["detail"]
            return answer.status_code

        kept = 0
        while await push("city", kept) == 201:
            kept += 1
        assert 2 < kept < 8
        await stores(api, kept + 1)
        for seed in (90, 91):
            assert await push("farm", seed) == 507
        await stores(api, kept + 1)
        assert (await api.ask("GET", "/tenants/me", other)).status_code == 200
        versions = (await api.ask("GET", "/tenants/me/models/city", key)).json()["versions"]
        assert len(versions) == kept
        path = "/tenants/me/models/city"
        assert (await api.ask("DELETE", path, key)).status_code == 204
        await stores(api, 1)

        async def fits() -> bool:  # once the runtime has let go of its links
            return await push("farm", 90) == 201

        await until(fits)


async def stores(api: Api, count: int) -> None:
    """Wait until so many files are stored, and no piece of another."""

    async def look() -> bool:
        names = [name for name, *_ in api.control.plane.store.everything()]
        return len(names) == count

    await until(look)


async def test_what_nobody_goes_on_with_expires(tmp_path: Path):
    """A day after its last byte: the row at the next sweep, and with it the bytes."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        _, key = await api.tenant("acme")
        body = {"model": "city", "size": 900_000}
        made = (await api.ask("POST", "/tenants/me/uploads", key, json=body)).json()
        headers = {"authorization": f"Bearer {key}", "upload-offset": "0"}
        path = f"/api/v1/tenants/me/uploads/{made['id']}"
        await api.http.patch(path, headers=headers, content=b"x" * 500_000)
        ledger = api.control.plane.ledger
        assert uploads.open_ones(ledger)
        late = replace_clock(ledger, time.time() + uploads.EXPIRES_S + 1)
        uploads.expire(late)
        assert uploads.open_ones(ledger) == {}
        assert len(list(api.control.plane.store.everything())) == 2
    async with serving(chosen) as api:  # a start sweeps
        await stores(api, 1)


def replace_clock(ledger, now: float):
    late = ledger.guarded(lambda _: None)
    late.clock = lambda: now
    return late


async def test_files_of_an_older_release_are_sealed(tmp_path: Path):
    """One open file that two tenants used becomes one for each; a kill on the way does no harm."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        tenants = [await api.tenant(name) for name in ("one", "two")]
        for _, key in tenants:
            path = "/tenants/me/models/city/versions"
            made = await api.ask("POST", path, key, content=b"model old")
        digest = made.json()["digest"]
        store, root = api.control.plane.store, chosen.artifacts
        await stores(api, 3)
        shutil.rmtree(root / tenants[0][0])  # as the older release had it, half brought over
        (root / digest).write_bytes(b"model old")
        for _ in range(2):
            adopt(api.control.plane.ledger, store, root)
            assert not (root / digest).exists()
            for tenant, _ in tenants:
                assert b"".join(store.read(tenant, digest)) == b"model old"
        assert isinstance(store, Artifacts)
        assert len(list(DirectoryStore(root).entries())) == 3


if __name__ == "__main__":  # in a mount namespace of its own
    disk = Path(sys.argv[1]) / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)], check=True)
    asyncio.run(on_a_small_disk(Path(sys.argv[1])))
