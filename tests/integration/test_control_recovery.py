"""What survives: crashes of runtimes, of the platform, restarts, changed choices, full load."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.app import opened
from tests.integration.control_plane import GATEWAY, Api, running, serving, settings, until


async def test_a_restart_serves_the_same(tmp_path: Path):
    """Tenants, keys, models and settings are there again, and runtimes run again."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        await api.tenant("sleeping")
        await api.ask("PATCH", "/tenants/sleeping", json={"state": "suspended"})
        pushed = await api.ask(
            "POST", "/tenants/me/models/city/versions", key, content=b"model one"
        )
        assert pushed.status_code == 201
        await api.ask("PATCH", "/tenants/me/models/city/settings", key, json={"iou": 0.6})
        before = (await api.ask("GET", "/tenants/me/models", key)).json()
        operator = api.control.operator_key
        first = api.pid(tenant)
    assert not running(first)
    assert list(chosen.run.glob("t_*")) == []
    async with serving(chosen) as api:
        assert api.control.operator_key == operator
        snapshot = (await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)).json()
        phases = {route["name"]: route["phase"] for route in snapshot["tenants"]}
        assert phases["acme"] != "failed"  # held at the door while it starts
        assert phases["sleeping"] == "absent"
        await api.ready(tenant)
        assert (await api.ask("GET", "/tenants/me/models", key)).json() == before


async def test_another_standard_model_reaches_every_runtime(tmp_path: Path):
    """Chosen at a restart: version 2 of `standard`, the only one."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        await api.ready(tenant)
    other = tmp_path / "other.bin"
    other.write_text("model other")
    async with serving(replace(chosen, standard=other, standard_label="pcb:3")) as api:
        await api.ready(tenant)
        shown = (await api.ask("GET", "/tenants/me/models/standard", key)).json()
        assert shown["current"] == 2
        assert "pcb:3" in shown["versions"][0]["created_by"]
        assert [m["version"] for m in api.spec(tenant)["models"][0]["versions"]] == [2]
        listed = await api.ask("GET", "/tenants/me/models", key)
        assert len(listed.json()["models"]) == 1


async def test_a_killed_runtime_serves_again_at_once(tmp_path: Path):
    """kill -9: FAILED for the gateways, ready again well within 5 s; the other is the same."""
    async with serving(settings(tmp_path / "home")) as api:
        tenant, _ = await api.tenant("acme")
        other, _ = await api.tenant("other")
        await api.ready(tenant)
        await api.ready(other)
        untouched, killed = api.pid(other), api.pid(tenant)
        revision = api.control.plane.changes.revision
        os.kill(killed, signal.SIGKILL)
        started = time.monotonic()
        answer = await api.http.get(f"/internal/v1/snapshot?after={revision}", headers=GATEWAY)
        phases = {route["tenant"]: route["phase"] for route in answer.json()["tenants"]}
        assert phases[tenant] == "failed"
        assert phases.get(other, "ready") == "ready"
        await api.ready(tenant)
        assert time.monotonic() - started < 5
        assert api.pid(other) == untouched
        assert api.pid(tenant) != killed


async def test_a_runtime_that_always_crashes_is_not_hammered(tmp_path: Path):
    """It backs off and stays FAILED with the exit status; a new spec is tried at once."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        await api.ready(tenant)
        pushed = await api.ask("POST", "/tenants/me/models/crash/versions", key, content=b"model")
        assert pushed.status_code == 201  # running with it is fine, starting with it is not
        os.kill(api.pid(tenant), signal.SIGKILL)

        async def often() -> bool:
            status = await api.phase(tenant, "failed")
            return "exited with status 3" in status["reason"]

        await until(often)
        await asyncio.sleep(1.5)
        snapshot = (await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)).json()
        assert time.time() - 1 < snapshot["tenants"][0]["retry_at"] < time.time() + 3
        log = (chosen.run / tenant / "log").read_text()
        assert log.count("started with generation") <= 2 + 4  # at 0, 0.25, 0.75, 1.75 s
        assert (await api.ask("DELETE", "/tenants/me/models/crash", key)).status_code == 204
        async with asyncio.timeout(3):
            await api.ready(tenant)


async def test_a_runtime_that_cannot_be_started(tmp_path: Path):
    """No such command: FAILED, told without the platform's paths, and the API goes on."""
    chosen = settings(tmp_path / "home", runtime_command=("/nowhere/runtime",))
    async with serving(chosen) as api:
        tenant, _ = await api.tenant("acme")
        status = await api.phase(tenant, "failed")
        assert "could not be started" in status["reason"]
        assert "/nowhere" not in status["reason"]
        assert (await api.ask("DELETE", "/tenants/acme")).status_code == 204


async def test_deleted_while_starting(tmp_path: Path):
    """A runtime that never answers is deleted like any other, and the stop does not hang."""
    async with serving(settings(tmp_path / "home")) as api:
        tenants = [await api.tenant(f"tenant-{number}") for number in range(3)]
        for tenant, _ in tenants:
            assert (await api.ask("DELETE", f"/tenants/{tenant}")).status_code == 204

        async def gone() -> bool:
            return not list(api.control.settings.run.glob("t_*"))

        await until(gone)


async def test_eight_writers_at_once(tmp_path: Path):
    """100 changes by 8 clients beside usage batches: every one is made, none is a 5xx."""
    command = ("/bin/sh", "-c", "exit 0")  # runtimes are not what is tested here
    async with serving(settings(tmp_path / "home", runtime_command=command)) as api:
        _, key = await api.tenant("acme")
        before = api.control.plane.ledger.revision()

        async def write(writer: int) -> list[int]:
            codes = []
            for number in range(12):
                name = f"{writer}-{number}"
                made = await api.ask("POST", "/tenants/me/keys", key, json={"name": name})
                record = {"id": name, "tenant": "t_x", "at": 1.0, "status": 200}
                used = await api.http.post("/internal/v1/usage", json=[record], headers=GATEWAY)
                codes += [made.status_code, used.status_code]
            return codes

        codes = await asyncio.gather(*(write(writer) for writer in range(8)))
        assert {code for batch in codes for code in batch} == {200, 201}
        assert len((await api.ask("GET", "/tenants/me/keys", key)).json()["keys"]) == 97
        assert api.control.plane.ledger.revision() >= before + 96


PLATFORM = """
import asyncio, sys
from pathlib import Path
from polyolo.control.app import run
from tests.integration.control_plane import settings
home, database = sys.argv[1:]
asyncio.run(run(settings(Path(home), database=database)))
"""


def start_platform(home: Path) -> subprocess.Popen[bytes]:
    """Start a platform in a process of its own, on a database that is there already."""
    arguments = [str(home), settings(home).database]
    return subprocess.Popen(
        [sys.executable, "-c", PLATFORM, *arguments], cwd=Path(__file__).parents[2]
    )


async def client(home: Path) -> Api:
    """Return a client of a platform in another process, once it answers."""
    transport = httpx.AsyncHTTPTransport(uds=str(home / "run" / "control.sock"))
    http = httpx.AsyncClient(transport=transport, base_url="http://control", timeout=30)

    async def up() -> bool:
        try:
            return (await http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    await until(up)

    class Elsewhere:
        settings = settings(home)
        operator_key = (home / "operator.key").read_text().strip()

    return Api(control=Elsewhere, http=http)  # type: ignore[arg-type]


async def test_kill_9_of_the_platform_leaves_no_orphan(tmp_path: Path):
    """The kernel takes the runtimes along; a new platform serves on; its SIGTERM ends with 0."""
    home = tmp_path / "home"
    platform = await asyncio.to_thread(start_platform, home)
    try:
        api = await client(home)
        tenant, key = await api.tenant("acme")
        await api.ready(tenant)
        runtime = api.pid(tenant)
        platform.kill()
        platform.wait()
        await api.http.aclose()

        async def dead() -> bool:
            return not running(runtime)

        await until(dead, within=2)
        platform = await asyncio.to_thread(start_platform, home)
        api = await client(home)
        await api.ready(tenant)
        assert (await api.ask("GET", "/tenants/me", key)).status_code == 200
        runtime = api.pid(tenant)
        await api.http.aclose()
        platform.terminate()
        assert await asyncio.to_thread(platform.wait, 20) == 0
        assert not running(runtime)
    finally:
        platform.kill()
        platform.wait()


async def test_one_platform_a_home(tmp_path: Path):
    """A second one is told so and touches nothing; the key is private."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        with pytest.raises(OSError, match="another polyolo runs"):
            async with opened(chosen):
                pass
        assert (await api.http.get("/readyz")).status_code == 200
    assert chosen.home.stat().st_mode & 0o777 == 0o700
    assert (chosen.home / "operator.key").stat().st_mode & 0o777 == 0o600


async def test_a_missing_or_refused_standard_model_stops_the_start(tmp_path: Path):
    """With a sentence, before anything runs; and the home is free again."""
    chosen = settings(tmp_path / "home")
    bad = tmp_path / "bad.bin"
    bad.write_text("no")
    with pytest.raises(Exception, match="this is no model"):
        async with opened(replace(chosen, standard=bad)):
            pass
    with pytest.raises(FileNotFoundError):
        async with opened(replace(chosen, standard=tmp_path / "missing")):
            pass
    async with opened(chosen):
        pass


async def test_no_secret_is_ever_stored(tmp_path: Path):
    """Keys are in no byte of the home but the operator's file; every change left its event."""
    chosen = settings(tmp_path / "home")
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        await api.ready(tenant)
        made = await api.ask("POST", "/tenants/me/keys", key, json={"name": "ci"})
        rotated = await api.ask("POST", f"/tenants/me/keys/{made.json()['id']}/rotate", key)
        await api.ask("PATCH", "/tenants/acme", json={"state": "suspended"})
        secrets = [key, made.json()["key"], rotated.json()["key"], api.control.operator_key]
        for file in chosen.home.rglob("*"):
            if file.is_file() and file != chosen.home / "operator.key":
                content = file.read_bytes()
                assert not any(secret.encode() in content for secret in secrets), file
        with api.control.plane.ledger.reading() as connection:
            changes = sa.select(db.events).where(db.events.c.kind == "change")
            events = connection.execute(changes.order_by(db.events.c.seq)).all()
    ours = ("runtime.", "signing-key.")  # what the platform does by itself
    actions = [event.action for event in events if not event.action.startswith(ours)]
    assert actions == [
        "standard.choose", "tenant.create", "key.create", "key.create", "key.revoke",
        "key.create", "tenant.suspend",
    ]  # fmt: skip
    assert {event.tenant for event in events} == {None, tenant}
