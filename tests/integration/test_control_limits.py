"""Limits over the control API: read by the tenant, set by the operator, in force at gateways."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec

from polyolo.types import Plan, Snapshot
from tests.integration.control_plane import GATEWAY, Api, serving, settings, until

PLANS = (
    Plan(name="default", min_replicas=1),
    Plan(name="pro", min_replicas=1, weight=4.0, requests_per_second=50.0),
)


async def snapshot(api: Api) -> Snapshot:
    answer = await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)
    assert answer.status_code == 200
    return msgspec.json.decode(answer.content, type=Snapshot)


async def plan_at_gateways(api: Api, tenant: str) -> Plan:
    return next(r.plan for r in (await snapshot(api)).tenants if r.tenant == tenant)


async def change(api: Api, tenant: str, body: Any, **more: Any) -> Any:
    return await api.ask("PATCH", f"/tenants/{tenant}/limits", json=body, **more)


async def test_limits_are_the_plans_until_they_are_the_tenants_own(tmp_path: Path):
    """One field at a time, back again with null; gateways have it when the answer is there."""
    async with serving(settings(tmp_path / "home", plans=PLANS)) as api:
        tenant, key = await api.tenant("acme")
        seen = (await api.ask("GET", "/tenants/me/limits", key)).json()
        assert (seen["name"], seen["requests_per_second"], seen["own"]) == ("default", 0, [])
        assert seen["images_used"] == 0
        body = {"requests_per_second": 5, "burst": 7, "resources": {"memory_bytes": 1 << 30}}
        answer = await change(api, "acme", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["requests_per_second"] == 5
        assert sorted(answer.json()["own"]) == [
            "burst",
            "requests_per_second",
            "resources.memory_bytes",
        ]
        plan = await plan_at_gateways(api, tenant)
        assert (plan.requests_per_second, plan.burst, plan.weight) == (5, 7, 1)
        await api.ask("PATCH", "/tenants/acme", json={"plan": "pro"})
        plan = await plan_at_gateways(api, tenant)
        assert (plan.name, plan.requests_per_second, plan.weight) == ("pro", 5, 4)
        await change(api, tenant, {"requests_per_second": None, "resources": None})
        plan = await plan_at_gateways(api, tenant)
        assert (plan.requests_per_second, plan.burst) == (50, 7)
        seen = (await api.ask("GET", f"/tenants/{tenant}/limits", key)).json()
        assert seen["own"] == ["burst"]
        actions = [
            (entry["action"], entry["detail"])
            for entry in (await api.ask("GET", "/tenants/acme/audit?limit=1000")).json()["entries"]
            if entry["kind"] == "change"
        ]
        assert ("tenant.plan", "default to pro") in actions
        assert [action for action, _ in actions].count("limits.change") == 2


async def test_only_the_operator_changes_limits(tmp_path: Path):
    """A tenant sees its own, and neither raises them nor sees another's."""
    async with serving(settings(tmp_path / "home", plans=PLANS)) as api:
        _, key = await api.tenant("acme")
        other, _ = await api.tenant("other")
        assert (await change(api, "me", {"burst": 100}, key=key)).status_code == 403
        changed = await api.ask("PATCH", "/tenants/me", key, json={"plan": "pro"})
        assert changed.status_code == 403
        for reference in (other, "other", "nobody"):
            assert (await api.ask("GET", f"/tenants/{reference}/limits", key)).status_code == 404
            assert (await change(api, reference, {}, key=key)).status_code == 404


async def test_limits_out_of_range_change_nothing(tmp_path: Path):
    """422 that names the field and its range, for one wrong field among good ones too."""
    async with serving(settings(tmp_path / "home", plans=PLANS)) as api:
        tenant, _ = await api.tenant("acme")
        wrong = [
            ({"burst": -1}, "burst must be a whole number, 0 to 1,000,000, not -1"),
            ({"weight": 0}, "weight"),
            ({"burst": 1, "idle_s": 0}, "idle_s"),
            ({"resources": {"processes": 1}}, "resources.processes"),
            ({"burst": 1.5}, "burst"),
            ({"burst": "7"}, "burst"),
            ({"rate": 7}, "rate"),
            ({"resources": {"ram": 7}}, "ram"),
            ({"min_replicas": 3}, "min_replicas (3) is more than max_replicas (1)"),
        ]
        for body, says in wrong:
            answer = await change(api, tenant, body)
            assert answer.status_code == 422, (body, answer.text)
            assert says in answer.json()["detail"]
        for body in ({"plan": "gold"}, {}, {"plan": "pro", "state": "gone"}):
            answer = await api.ask("PATCH", f"/tenants/{tenant}", json=body)
            assert answer.status_code == 422, body
        seen = (await api.ask("GET", f"/tenants/{tenant}/limits")).json()
        assert (seen["name"], seen["own"]) == ("default", [])


async def test_resources_reach_the_runtime(tmp_path: Path):
    """What a replica may use is in its spec; a change of it is a new generation, of a rate not."""
    async with serving(settings(tmp_path / "home", plans=PLANS)) as api:
        tenant, _ = await api.tenant("acme")
        before = await api.ready(tenant)
        await change(api, tenant, {"requests_per_second": 3})
        await change(api, tenant, {"resources": {"cpus": 0.5}})

        async def told() -> bool:
            return api.spec(tenant)["generation"] != before["observed_generation"]

        await until(told)
        spec = api.spec(tenant)
        assert spec["resources"]["cpus"] == 0.5
        assert spec["generation"] == before["observed_generation"] + 1


async def test_a_gateway_that_dies_leaves_its_share_to_the_others(tmp_path: Path):
    """Its poll's connection breaks; those that are left hear at once how many they are."""
    async with serving(settings(tmp_path / "home", plans=PLANS)) as api:

        async def poll(name: str, after: int, known: int) -> httpx.Response:
            query = f"after={after}&gateway={name}&gateways={known}"
            return await api.http.get(f"/internal/v1/snapshot?{query}", headers=GATEWAY)

        first = msgspec.json.decode((await poll("a", -1, 0)).content, type=Snapshot)
        assert first.gateways == 1
        waiting = asyncio.create_task(poll("a", first.revision, 1))
        transport = httpx.AsyncHTTPTransport(uds=str(api.control.settings.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as other:
            query = f"after={first.revision}&gateway=b&gateways=2"
            dying = asyncio.create_task(
                other.get(f"/internal/v1/snapshot?{query}", headers=GATEWAY)
            )
            news = msgspec.json.decode((await waiting).content, type=Snapshot)
            assert (news.gateways, news.tenants, news.since) == (2, (), first.revision)
            waiting = asyncio.create_task(poll("a", first.revision, 2))
            await asyncio.sleep(0.05)
            dying.cancel()
            async with asyncio.timeout(5):
                news = msgspec.json.decode((await waiting).content, type=Snapshot)
            assert news.gateways == 1
            await asyncio.gather(dying, return_exceptions=True)
