"""Who sleeps, who wakes and who gets more: a control plane with small runtimes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from polyolo.control import db
from polyolo.control.settings import ControlSettings
from polyolo.types import Plan
from tests.integration.control_plane import GATEWAY, Api, running, serving, settings, until


def sleepy(home: Path, **plan: Any) -> ControlSettings:
    """Return settings whose tenants sleep until they are used, and soon again."""
    return settings(home, plans=(Plan(name="default", idle_s=0.1, **plan),))


async def wake(api: Api, tenant: str) -> dict[str, Any]:
    """Ask for a runtime as a gateway does, and return its status."""
    answer = await api.http.post(f"/internal/v1/wake?tenant={tenant}", headers=GATEWAY)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def unused(api: Api, tenant: str) -> None:
    """Have it be so long since anybody used a runtime that it may sleep."""
    with api.control.plane.ledger.changing() as transaction:
        of_tenant = db.runtimes.update().where(db.runtimes.c.tenant == tenant)
        transaction.connection.execute(of_tenant.values(used_at=0.0, load=None))
        transaction.touch(tenant)


async def busy(api: Api, tenant: str, in_flight: float) -> None:
    """Report as a gateway does, for the last second."""
    answer = await api.http.post(
        "/internal/v1/activity?gateway=g", json={tenant: in_flight}, headers=GATEWAY
    )
    assert answer.status_code == 204, answer.text


def socket(status: dict[str, Any]) -> Path:
    (endpoint,) = status["endpoints"]
    return Path(endpoint.removeprefix("unix:"))


async def answers(path: Path) -> bool:
    """Say whether somebody listens at a socket and answers."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as http:
        return (await http.get("http://runtime/runtime/status")).status_code == 200


async def starts(api: Api) -> int:
    """Return how often a runtime has become ready."""
    entries = (await api.ask("GET", "/audit", params={"limit": 1000})).json()["entries"]
    return sum(entry["action"] == "runtime.ready" for entry in entries)


async def test_it_sleeps_again_when_nobody_uses_it(tmp_path: Path):
    """Busy it stays; then gateways are told before it ends, and nothing of it is left."""
    async with serving(sleepy(tmp_path / "home")) as api:
        tenant, _ = await api.tenant("acme")
        status = await wake(api, tenant)
        pid = api.pid(tenant)
        for _ in range(4):  # the idle time has a floor of three seconds
            await busy(api, tenant, 0.2)
            await asyncio.sleep(1)
        assert api.pid(tenant) == pid
        await api.phase(tenant, "asleep")
        assert await answers(socket(status))  # what was sent there a moment ago is answered
        await until(nothing_left(api))
        assert not running(pid)
        again = await wake(api, tenant)
        assert again["phase"] == "ready"
        assert api.pid(tenant) != pid


def nothing_left(api: Api) -> Any:
    async def look() -> bool:
        return list(api.control.settings.run.glob("t_*")) == []

    return look


async def test_one_that_is_wanted_again_as_it_is_put_to_sleep_goes_on(tmp_path: Path):
    """Woken while gateways are told that it sleeps: the same process, at once."""
    async with serving(sleepy(tmp_path / "home")) as api:
        tenant, _ = await api.tenant("acme")
        await wake(api, tenant)
        pid = api.pid(tenant)
        await unused(api, tenant)
        await api.phase(tenant, "asleep")
        assert (await wake(api, tenant))["phase"] == "ready"
        assert api.pid(tenant) == pid


async def test_one_that_drains_does_not_keep_the_next_one_waiting(tmp_path: Path):
    """It ends in its own time, another one answers beside it; in the end there is one."""
    chosen = replace(sleepy(tmp_path / "home"), drain_s=3.0)
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        pushed = await api.ask(
            "POST", "/tenants/me/models/stubborn/versions", key, content=b"model one"
        )
        assert pushed.status_code == 201
        first = await wake(api, tenant)
        pid = api.pid(tenant)
        stopping = chosen.run / tenant / "stopping"
        await unused(api, tenant)

        async def drains() -> bool:
            return stopping.exists()

        await until(drains)
        started = time.monotonic()
        second = await wake(api, tenant)
        assert time.monotonic() - started < 2
        assert socket(second) != socket(first)
        assert running(pid)

        async def ended() -> bool:
            return not running(pid)

        await until(ended)
        assert await answers(socket(second))


async def test_a_runtime_that_fails_is_told_to_who_wakes_it(tmp_path: Path):
    """At once, not after the longest wait."""
    chosen = replace(sleepy(tmp_path / "home"), runtime_command=("/bin/sh", "-c", "exit 3"))
    async with serving(chosen) as api:
        tenant, _ = await api.tenant("acme")
        started = time.monotonic()
        assert (await wake(api, tenant))["phase"] == "failed"
        assert time.monotonic() - started < 5
        unknown = await api.http.post("/internal/v1/wake?tenant=t_nobody", headers=GATEWAY)
        assert unknown.status_code == 404


async def test_lasting_load_brings_another_copy(tmp_path: Path):
    """Reports of many requests in flight: two endpoints, the first one the same; no more."""
    async with serving(sleepy(tmp_path / "home", max_replicas=2)) as api:
        tenant, _ = await api.tenant("acme")
        first = await wake(api, tenant)

        async def two() -> list[str]:
            await busy(api, tenant, 40.0)
            status = (await api.ask("GET", f"/tenants/{tenant}/runtime")).json()
            return status["endpoints"] if len(status["endpoints"]) == 2 else []

        endpoints = await until(two)
        assert endpoints[0] == first["endpoints"][0]
        second = Path(endpoints[1].removeprefix("unix:"))
        assert await answers(second)
        # One of them is killed: the other one goes on, and soon there are two again.
        os.kill(api.pid(f"{tenant}~2"), signal.SIGKILL)

        async def one() -> bool:
            return len(await two()) != 2

        await until(one)
        assert await until(two) == endpoints
        audit = await api.ask("GET", "/tenants/acme/audit", params={"limit": 1000})
        told = [one for one in audit.json()["entries"] if one["action"] == "runtime.copy-failed"]
        assert [one["detail"] for one in told] == ["its process was killed by SIGKILL"]


async def test_a_restart_starts_those_that_were_in_use(tmp_path: Path):
    """Of three tenants one was used: it runs again by itself, the others have no process."""
    chosen = settings(tmp_path / "home", plans=(Plan(name="default"),))
    async with serving(chosen) as api:
        tenants = [(await api.tenant(name))[0] for name in ("used", "new", "other")]
        await wake(api, tenants[0])
    async with serving(chosen) as api:
        await api.ready(tenants[0])
        assert [path.name for path in chosen.run.glob("t_*")] == [tenants[0]]
        snapshot = (await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)).json()
        phases = {route["name"]: route["phase"] for route in snapshot["tenants"]}
        assert phases == {"used": "ready", "new": "asleep", "other": "asleep"}


async def test_a_tenant_may_have_its_runtime_warm(tmp_path: Path):
    """A call wakes it, as a request would; its owner is not told where it is."""
    async with serving(sleepy(tmp_path / "home")) as api:
        tenant, key = await api.tenant("acme")
        answer = await api.ask("POST", "/tenants/me/runtime/warm", key)
        assert (answer.status_code, answer.json()["phase"]) == (200, "ready")
        assert answer.json()["endpoints"] == []
        assert running(api.pid(tenant))


async def test_a_schedule_keeps_it_awake_and_no_longer(tmp_path: Path):
    """Set by the operator only: awake without a request, asleep as soon as it is taken back."""
    async with serving(sleepy(tmp_path / "home")) as api:
        tenant, key = await api.tenant("acme")
        path, always = f"/tenants/{tenant}/runtime/schedule", ["mon-sun 00:00-24:00"]
        for who, windows, code in (
            (key, always, 403),
            (None, ["always"], 422),
            (None, always, 200),
        ):
            answer = await api.ask("PATCH", path, who, json={"windows": windows})
            assert answer.status_code == code, answer.text
        await api.ready(tenant)
        assert (await api.ask("GET", path, key)).json() == {"windows": always}
        assert (await api.ask("PATCH", path, json={"windows": []})).json() == {"windows": []}
        await api.phase(tenant, "asleep")
        await until(nothing_left(api))
