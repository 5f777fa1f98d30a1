"""Runtimes that are woken, on both databases; see test_sleeping for what else becomes of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from polyolo.types import Plan
from tests.integration.control_plane import serving
from tests.integration.test_control_two import pair
from tests.integration.test_sleeping import answers, sleepy, socket, starts, wake


async def test_a_new_tenant_sleeps_until_somebody_wants_it(tmp_path: Path):
    """No process before; fifty calls at once start one, and all learn where it is."""
    async with serving(sleepy(tmp_path / "home")) as api:
        tenant, _ = await api.tenant("acme")
        assert (await api.ask("GET", f"/tenants/{tenant}/runtime")).json()["phase"] == "asleep"
        assert list(api.control.settings.run.glob("t_*")) == []
        found = await asyncio.gather(*(wake(api, tenant) for _ in range(50)))
        assert {status["phase"] for status in found} == {"ready"}
        assert len({socket(status) for status in found}) == 1
        assert await answers(socket(found[0]))
        assert await starts(api) == 1


async def test_a_call_to_the_other_control_plane_wakes_too(tmp_path: Path):
    """The one that does not reconcile passes it on through the database."""
    one, two = pair(tmp_path)
    plans = (Plan(name="default"),)
    one, two = replace(one, plans=plans), replace(two, plans=plans)
    async with serving(one) as first, serving(two) as second:
        tenant, _ = await first.tenant("acme")
        status = await wake(second, tenant)
        assert status["phase"] == "ready"
        assert str(one.run) in str(socket(status))


@pytest.mark.parametrize("path", ["wake?tenant=t_a", "activity?gateway=g"])
async def test_only_gateways_may(tmp_path: Path, path: str):
    """A tenant's key or none opens neither."""
    async with serving(sleepy(tmp_path / "home")) as api:
        _, key = await api.tenant("acme")
        for headers in ({}, {"authorization": f"Bearer {key}"}):
            answer = await api.http.post(f"/internal/v1/{path}", headers=headers, json={})
            assert answer.status_code == 401
