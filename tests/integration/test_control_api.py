"""The control API over a real socket: tenants, keys, usage, the snapshot, and every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.control_plane import GATEWAY, Api, running, serving, settings, until


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def snapshot(api: Api, after: int = -1) -> dict:
    answer = await api.http.get(f"/internal/v1/snapshot?after={after}", headers=GATEWAY)
    assert answer.status_code == 200
    return answer.json()


async def test_a_tenant_is_made_with_key_and_runtime(api: Api):
    """201 with the key once; the runtime serves the standard model by itself."""
    answer = await api.ask("POST", "/tenants", json={"name": "acme"})
    made = answer.json()
    assert answer.status_code == 201
    assert (made["name"], made["plan"], made["state"]) == ("acme", "default", "active")
    assert made["default_model"] == "standard"
    key = made["api_key"]["key"]
    status = await api.ready(made["id"])
    assert status["models"][0]["name"] == "standard"
    for reference in ("me", "acme", made["id"]):
        shown = (await api.ask("GET", f"/tenants/{reference}", key)).json()
        assert shown["id"] == made["id"]
        assert shown["api_key"] is None
        assert shown["runtime"]["endpoints"] == []  # where it lives is the platform's business
    listed = (await api.ask("GET", "/tenants")).json()["tenants"]
    assert [one["name"] for one in listed] == ["acme"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"name": "acme"}, 409, "taken"),
        ({"name": "me"}, 422, "reserved"),
        ({"name": "../x"}, 422, "letters"),
        ({"name": ""}, 422, "letters"),
        ({}, 422, "name: field required"),
        ({"name": 7}, 422, "name"),
        ({"name": "x", "plan": "gold"}, 422, "default, pro"),
        ({"name": "x", "paln": "pro"}, 422, "paln"),
        ([], 422, "the body"),
    ],
)
async def test_a_tenant_that_cannot_be_made(api: Api, body, status: int, said: str):
    """Each with a sentence that names what is wrong; nothing is made."""
    await api.tenant("acme")
    answer = await api.ask("POST", "/tenants", json=body)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert len((await api.ask("GET", "/tenants")).json()["tenants"]) == 1


async def test_of_two_at_once_one_gets_the_name(api: Api):
    """Ten concurrent creates of one name: one 201, nine 409."""
    asked = [api.ask("POST", "/tenants", json={"name": "acme"}) for _ in range(10)]
    codes = [answer.status_code for answer in await asyncio.gather(*asked)]
    assert sorted(codes) == [201] + [409] * 9


async def test_another_tenant_is_not_there(api: Api):
    """404 in the very words of a tenant that does not exist, for every route and method."""
    other, _ = await api.tenant("other")
    _, key = await api.tenant("mine")
    routes = [
        ("GET", "", {}),
        ("PATCH", "", {"json": {"state": "active"}}),
        ("DELETE", "", {}),
        ("GET", "/keys", {}),
        ("POST", "/keys", {"json": {}}),
        ("DELETE", "/keys/abc", {}),
        ("GET", "/models", {}),
        ("GET", "/models/standard", {}),
        ("POST", "/models/city/versions", {"content": b"model"}),
        ("GET", "/runtime", {}),
        ("GET", "/usage", {}),
    ]
    for method, tail, more in routes:
        bodies = []
        for reference in (other, "other", "nobody"):
            answer = await api.ask(method, f"/tenants/{reference}{tail}", key, **more)
            assert answer.status_code == 404, (method, reference, tail)
            bodies.append(answer.text.replace(reference, "X"))
        assert len(set(bodies)) == 1
    assert (await api.ask("GET", "/tenants", key)).status_code == 403
    assert (await api.ask("GET", "/usage", key)).status_code == 403
    assert (
        await api.ask("PATCH", "/tenants/me", key, json={"state": "suspended"})
    ).status_code == 403


async def test_a_name_like_another_tenants_id_shadows_nothing(api: Api):
    """An id means its tenant, even when somebody else is called so."""
    victim, key = await api.tenant("victim")
    await api.tenant(victim)
    assert (await api.ask("GET", f"/tenants/{victim}")).json()["name"] == "victim"
    assert (await api.ask("GET", f"/tenants/{victim}", key)).json()["name"] == "victim"


async def test_keys_are_made_listed_rotated_revoked(api: Api):
    """Shown once; scopes bind; a rotated or revoked key is 401 from then on."""
    _, key = await api.tenant("acme")
    weak = await api.ask(
        "POST",
        "/tenants/me/keys",
        key,
        json={"name": "ci", "scopes": ["models:read", "keys:write"]},
    )
    assert weak.status_code == 201
    weak_key, weak_id = weak.json()["key"], weak.json()["id"]
    listed = (await api.ask("GET", "/tenants/me/keys", key)).json()["keys"]
    assert [one["key"] for one in listed] == [None, None]
    assert (await api.ask("GET", "/tenants/me/models", weak_key)).status_code == 200
    refused = await api.ask("GET", "/tenants/me/usage", weak_key)
    assert (refused.status_code, refused.json()["detail"]) == (
        403,
        "this key lacks the scope usage:read",
    )
    # No key makes, or becomes, a stronger one.
    stronger = {"json": {"scopes": ["detect"]}}
    assert (await api.ask("POST", "/tenants/me/keys", weak_key, **stronger)).status_code == 403
    first = listed[0]["id"]
    assert (await api.ask("POST", f"/tenants/me/keys/{first}/rotate", weak_key)).status_code == 403
    same = await api.ask("POST", "/tenants/me/keys", weak_key, json={})
    assert same.json()["scopes"] == ["models:read", "keys:write"]

    fresh = await api.ask("POST", f"/tenants/me/keys/{weak_id}/rotate", key)
    assert fresh.json()["scopes"] == ["models:read", "keys:write"]
    assert (await api.ask("GET", "/tenants/me", weak_key)).status_code == 401
    assert (await api.ask("GET", "/tenants/me", fresh.json()["key"])).status_code == 200
    gone = f"/tenants/me/keys/{fresh.json()['id']}"
    assert (await api.ask("DELETE", gone, key)).status_code == 204
    assert (await api.ask("DELETE", gone, key)).status_code == 404
    assert (await api.ask("GET", "/tenants/me", fresh.json()["key"])).status_code == 401


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"scopes": ["everything"]}, "scopes"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": 0}, "expires_in"),
        ({"name": "x" * 101}, "name"),
    ],
)
async def test_a_key_that_cannot_be_made(api: Api, body, said: str):
    """422 naming the field."""
    _, key = await api.tenant("acme")
    answer = await api.ask("POST", "/tenants/me/keys", key, json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_a_key_expires(api: Api):
    """After its second it is 401; the snapshot tells gateways when."""
    _, key = await api.tenant("acme")
    made = (await api.ask("POST", "/tenants/me/keys", key, json={"expires_in": 1})).json()
    assert made["expires_at"] == pytest.approx(made["created_at"] + 1)
    entries = {entry["id"]: entry for entry in (await snapshot(api))["keys"]}
    assert entries[made["id"]]["expires_at"] == made["expires_at"]

    async def expired() -> bool:
        return (await api.ask("GET", "/tenants/me", made["key"])).status_code == 401

    await until(expired)


async def test_the_snapshot_tells_all_and_no_secret(api: Api):
    """Routes, phases, endpoints, digests; a poll answers when something is new."""
    tenant, key = await api.tenant("acme")
    await api.ready(tenant)
    first = await snapshot(api)
    route = first["tenants"][0]
    assert (route["name"], route["phase"], route["plan"]["name"]) == ("acme", "ready", "default")
    assert route["endpoints"][0].startswith("unix:")
    assert key not in str(first)
    poll = asyncio.create_task(snapshot(api, first["revision"]))
    await asyncio.sleep(0.05)
    assert not poll.done()
    _, other = await api.tenant("other")
    async with asyncio.timeout(5):
        fresh = await poll
    assert fresh["revision"] > first["revision"]
    assert {one["name"] for one in fresh["tenants"]} == {"other"}  # what has changed
    assert (await api.http.get("/internal/v1/snapshot")).status_code == 401
    for wrong in (key, other, api.control.operator_key):
        answer = await api.http.get(
            "/internal/v1/snapshot", headers={"authorization": f"Bearer {wrong}"}
        )
        assert answer.status_code == 401


async def test_suspended_answers_403_and_resumes(api: Api):
    """The runtime ends, the key is known but refused; afterwards all is as before."""
    tenant, key = await api.tenant("acme")
    await api.ready(tenant)
    pid = api.pid(tenant)
    assert (await api.ask("PATCH", "/tenants/acme", json={"state": "suspended"})).status_code == 200
    assert (await api.ask("GET", "/tenants/me", key)).status_code == 403
    await api.phase(tenant, "absent")
    route = (await snapshot(api))["tenants"][0]
    assert (route["state"], route["endpoints"]) == ("suspended", [])
    assert not running(pid)
    assert (await api.ask("PATCH", "/tenants/acme", json={"state": "active"})).status_code == 200
    await api.ready(tenant)
    assert (await api.ask("GET", "/tenants/me", key)).status_code == 200


async def test_deleted_leaves_nothing_and_frees_the_name(api: Api):
    """The key stops at once, then process, directory and rows go; the name can be used again."""
    tenant, key = await api.tenant("acme")
    await api.ready(tenant)
    assert (await api.ask("DELETE", "/tenants/me", key)).status_code == 403
    assert (await api.ask("DELETE", "/tenants/acme")).status_code == 204
    assert (await api.ask("GET", "/tenants/me", key)).status_code == 401
    assert (await api.ask("GET", "/tenants/acme")).status_code == 404
    again, _ = await api.tenant("acme")
    assert again != tenant

    async def gone() -> bool:
        return not (api.control.settings.run / tenant).exists()

    await until(gone)
    await api.ready(again)
    assert [one["tenant"] for one in (await snapshot(api))["tenants"]] == [again]


async def test_usage_counts_each_record_once(api: Api):
    """A batch handed over twice, or twice in one batch, counts once; sums by model and in time."""
    tenant, key = await api.tenant("acme")
    record = {"id": "u1", "tenant": tenant, "at": 1000.0, "status": 200, "model": "standard",
              "version": 1, "images": 1, "engine_ms": 8.5, "bytes_in": 100}  # fmt: skip
    batch = [record, record, record | {"id": "u2", "status": 422, "images": 0, "model": ""}]
    for _ in range(2):
        answer = await api.http.post("/internal/v1/usage", json=batch, headers=GATEWAY)
        assert answer.status_code == 200
    used = (await api.ask("GET", "/tenants/me/usage?since=0", key)).json()
    assert (used["requests"], used["images"], used["errors"]) == (2, 1, 1)
    assert (used["engine_ms"], used["bytes_in"]) == (17.0, 200)
    assert used["models"] == [{"model": "standard", "requests": 1, "images": 1, "engine_ms": 8.5}]
    later = (await api.ask("GET", "/tenants/me/usage?since=1001", key)).json()
    assert later["requests"] == 0
    assert (await api.ask("GET", "/usage?since=0")).json()["usage"] == [
        used | {"until": pytest.approx(used["until"], abs=5)}
    ]
    bad = await api.http.post("/internal/v1/usage", json=[{"id": 1}], headers=GATEWAY)
    assert bad.status_code == 400
    assert (await api.ask("GET", "/tenants/me/usage?since=never", key)).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("GET", "/api/v1/nothing", {}, 404),
        ("GET", "/api/v1/tenants/", {}, 404),
        ("PUT", "/api/v1/tenants", {}, 405),
        (
            "POST",
            "/api/v1/tenants",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            400,
        ),
        ("POST", "/api/v1/tenants", {"json": {"name": "x" * (1 << 20)}}, 413),
        ("POST", "/api/v1/tenants", {"content": [b"x" * 65536] * 17}, 413),
        ("GET", "/api/v1/tenants", {}, 401),
        ("GET", "/internal/v1/nothing", {}, 404),
    ],
)
async def test_every_error_is_a_problem_document(api: Api, method, path, more, status: int):
    """Type, title, status, detail, instance; whichever layer it comes from."""
    if "content" in more and not isinstance(more["content"], bytes):
        pieces = list(more["content"])

        async def stream():
            for piece in pieces:
                yield piece

        more = {"content": stream()}
    answer = await api.http.request(method, path, **more)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["instance"]) == (status, path)
    assert problem["detail"]
    assert ("www-authenticate" in answer.headers) is (status == 401)


async def test_the_openapi_document_describes_it(api: Api):
    """Every path with its answer's shape and the problem document."""
    document = (await api.http.get("/openapi.json")).json()
    assert "/api/v1/tenants/{tenant}/models/{name}/versions" in document["paths"]
    assert not any(path.startswith("/internal") for path in document["paths"])
    made = document["paths"]["/api/v1/tenants"]["post"]["responses"]
    assert made["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/Tenant")
    assert "application/problem+json" in made["4XX"]["content"]


async def test_probes(api: Api):
    """Live, ready, metrics; no credential needed."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await api.http.get(path)).status_code == 200
