"""Releases of the runtimes' program: pinned tenant by tenant, moved ring by ring, and back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.control_plane import GATEWAY, PARTS, Api, serving, settings, until

RUNTIME = (sys.executable, str(PARTS / "small_runtime.py"))


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Give a control plane with two releases besides its own; -B and -I only tell them apart."""
    releases = {"0.1": (RUNTIME[0], "-B", RUNTIME[1]), "0.2": (RUNTIME[0], "-q", RUNTIME[1])}
    async with serving(settings(tmp_path / "home", releases=releases)) as api:
        yield api


def command(api: Api, tenant: str) -> str:
    return Path(f"/proc/{api.pid(tenant)}/cmdline").read_bytes().replace(b"\0", b" ").decode()


async def on(api: Api, tenant: str, release: str) -> bool:
    status = (await api.ask("GET", f"/tenants/{tenant}/runtime")).json()
    return status["phase"] == "ready" and status["release"] == release


async def test_a_pinned_tenant_is_started_again_on_its_release(api: Api):
    """The next program serves it; gateways hold requests meanwhile; null follows again."""
    tenant, _ = await api.tenant("acme")
    await api.ready(tenant)
    first = api.pid(tenant)
    phases: list[str] = []
    stop = asyncio.Event()

    async def watch() -> None:
        after = -1
        while not stop.is_set():
            path = f"/internal/v1/snapshot?after={after}&gateway=w"
            answer = await api.http.get(path, headers=GATEWAY)
            if answer.status_code == 200:
                after = answer.json()["revision"]
                phases.append(answer.json()["tenants"][0]["phase"])

    watching = asyncio.create_task(watch())
    pinned = await api.ask("PUT", f"/tenants/{tenant}/release", json={"release": "0.1"})
    assert pinned.json()["release"] == "0.1"
    await until(lambda: on(api, tenant, "0.1"))
    assert api.pid(tenant) != first
    assert " -B " in command(api, tenant)
    same = api.pid(tenant)
    await api.ask("PUT", f"/tenants/{tenant}/release", json={"release": "0.1"})
    assert api.pid(tenant) == same
    await api.ask("PUT", f"/tenants/{tenant}/release", json={"release": None})
    await until(lambda: on(api, tenant, ""))
    assert " -B " not in command(api, tenant)
    stop.set()
    await api.ask("PATCH", f"/tenants/{tenant}", json={"state": "suspended"})  # ends the poll
    await watching
    assert set(phases) - {"ready", "starting", "absent"} <= {"stopping"}
    assert "stopping" not in phases[: len(phases) - 2], "while it restarts, requests are held"


async def test_rings_hold_each_other_and_pinned_tenants_stay(api: Api):
    """A larger share holds a smaller one; 0 takes all back; 1 makes it the platform's."""
    tenants = [(await api.tenant(f"acme-{number}"))[0] for number in range(5)]
    pinned = tenants.pop()
    await api.ask("PUT", f"/tenants/{pinned}/release", json={"release": "0.2"})

    async def move(release: str, share: float) -> set[str]:
        answer = await api.ask("PUT", "/releases", json={"release": release, "share": share})
        assert answer.status_code == 200, answer.text
        shown = {one["name"]: one for one in answer.json()["releases"]}
        assert shown["0.2"]["pinned"] == 1
        wanted = shown[release]["tenants"] - shown[release]["pinned"]

        async def settled() -> bool:
            found.clear()
            found.update([tenant for tenant in tenants if await on(api, tenant, release)])
            return len(found) == wanted

        found: set[str] = set()
        await until(settled)
        return found

    for tenant in tenants:
        await api.ready(tenant)
    some = await move("0.1", 0.5)
    most = await move("0.1", 0.9)
    assert some <= most
    assert await move("0.1", 0.0) == set()
    assert await move("0.1", 1.0) == set(tenants)
    listed = (await api.ask("GET", "/releases")).json()["releases"]
    assert [(one["name"], one["default"], one["tenants"]) for one in listed] == [
        ("", False, 0),
        ("0.1", True, 4),
        ("0.2", False, 1),
    ]
    assert await move("", 1.0) == set(tenants)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/releases", {"release": "9.9", "share": 0.5}),
        ("/releases", {"release": "0.1", "share": 1.5}),
        ("/tenants/acme/release", {"release": "9.9"}),
    ],
)
async def test_what_is_no_release(api: Api, path: str, body: dict):
    """422 with what there is; only the operator may ask."""
    _, key = await api.tenant("acme")
    refused = await api.ask("PUT", path, json=body)
    assert refused.status_code == 422
    assert "0.1, 0.2" in refused.json()["detail"] or "share" in refused.json()["detail"]
    assert (await api.ask("PUT", path, key, json=body)).status_code == 403
