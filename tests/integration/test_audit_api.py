"""Who called when: every call is in the audit log before it is answered, for its tenant to read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from polyolo.control.service import audit
from tests.integration.control_plane import GATEWAY, Api, serving, settings, until

SOURCE = {"polyolo-client-address": "192.0.2.7"}


async def log_of(api: Api, key: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
    path = "/tenants/me/audit" if key else "/audit"
    answer = await api.ask("GET", path, key, params={"limit": 1000} | wanted)
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries


@pytest.fixture
async def api(tmp_path: Path, database: str) -> Any:
    command = ("/bin/sh", "-c", "exit 0")  # runtimes are not what is tested here
    async with serving(settings(tmp_path / "home", runtime_command=command)) as api:
        api.http.headers.update(SOURCE)
        yield api


async def test_calls_are_recorded_before_they_are_answered(api: Api):
    """Who, from where, what, on what, with what outcome; changes before their calls."""
    tenant, key = await api.tenant("acme")
    made = (await api.ask("POST", "/tenants/me/keys", key, json={"name": "ci"})).json()
    await api.ask("GET", "/tenants/me/models/nothing", key)
    await api.ask("POST", "/tenants/me/keys", key, json={"nonsense": 1})
    seen = [e for e in await log_of(api, key) if not e["action"].startswith("runtime.")]
    identifier = key.split("_")[1]
    says = [(e["kind"], e["actor"], e["action"], e["resource"], e["status"]) for e in seen]
    assert says == [
        ("change", "operator", "tenant.create", "tenants/acme", 0),
        ("change", "operator", "key.create", f"keys/{identifier}", 0),
        ("call", "operator", "tenants:create", "POST /api/v1/tenants", 201),
        ("change", f"key:{identifier}", "key.create", f"keys/{made['id']}", 0),
        ("call", f"key:{identifier}", "keys:write", "POST /api/v1/tenants/me/keys", 201),
        ("call", f"key:{identifier}", "models:read", "GET /api/v1/tenants/me/models/nothing", 404),
        ("call", f"key:{identifier}", "keys:write", "POST /api/v1/tenants/me/keys", 422),
    ]
    assert {e["source"] for e in seen} == {"192.0.2.7"}
    assert {e["tenant"] for e in seen} == {tenant}


async def test_refused_calls_are_recorded_where_they_belong(api: Api):
    """No key, a wrong one, another's tenant, no scope, no such path: all there."""
    _, key = await api.tenant("acme")
    other, _ = await api.tenant("other")
    weak = (await api.ask("POST", "/tenants/me/keys", key, json={"scopes": ["detect"]})).json()
    await api.http.get("/api/v1/tenants")
    await api.ask("GET", "/tenants", "pk_" + "a" * 12 + "_" + "b" * 43)
    await api.ask("GET", f"/tenants/{other}", key)
    await api.ask("GET", "/tenants/me/keys", weak["key"])
    await api.ask("GET", f"/nothing/{key}", key)
    calls = [e for e in await log_of(api) if e["kind"] == "call"]
    refused = [(e["actor"], e["resource"], e["status"]) for e in calls if e["status"] >= 400]
    mine = f"key:{key.split('_')[1]}"
    assert refused == [
        ("nobody", "GET /api/v1/tenants", 401),
        ("nobody", "GET /api/v1/tenants", 401),
        (mine, f"GET /api/v1/tenants/{other}", 404),
        (f"key:{weak['id']}", "GET /api/v1/tenants/me/keys", 403),
        ("nobody", "GET /api/v1/nothing/[masked]", 404),
    ]
    assert key not in json.dumps(await log_of(api))
    denied = [e for e in await log_of(api, key) if e["status"] in (403, 404)]
    assert len(denied) == 2  # what others were refused elsewhere is not this tenant's
    foreign = await api.ask("GET", f"/tenants/{other}/audit", key)
    assert foreign.status_code == 404
    assert (await api.ask("GET", "/audit", key)).status_code == 403
    assert (await api.ask("GET", "/audit/verify", key)).status_code == 403


async def test_detections_are_recorded_once_without_what_was_seen(api: Api):
    """Handed over twice, also within one batch: one entry each, with key, address and outcome."""
    tenant, key = await api.tenant("acme")
    record = {"id": "r1", "tenant": tenant, "at": 12.5, "status": 200, "model": "pcb", "version": 2}
    record |= {"principal": "key:abc", "source": "2001:db8::1", "images": 1}
    for batch in ([record, record], [record, record | {"id": "r2", "status": 429}]):
        answer = await api.http.post("/internal/v1/usage", json=batch, headers=GATEWAY)
        assert answer.status_code == 200
    seen = [e for e in await log_of(api, key) if e["kind"] == "detect"]
    assert [(e["detail"], e["status"]) for e in seen] == [("r1", 200), ("r2", 429)]
    assert {(e["at"], e["actor"], e["source"], e["resource"]) for e in seen} == {
        (12.5, "key:abc", "2001:db8::1", "models/pcb:2")
    }


async def test_exports_and_pages_tell_the_same(api: Api):
    """JSON pages, JSON Lines and CSV; a cell that begins like a formula is made harmless."""
    _, key = await api.tenant("acme")
    record = {"id": "=cmd()", "tenant": "t_x", "at": 1.0, "status": 200}
    await api.http.post("/internal/v1/usage", json=[record], headers=GATEWAY)
    whole = await log_of(api)
    pages: list[dict[str, Any]] = []
    while page := await log_of(api, limit=2, after=pages[-1]["seq"] if pages else 0):
        pages += page
        if pages[-1]["seq"] >= whole[-1]["seq"]:
            break
    assert pages[: len(whole)] == whole
    lines = await api.ask("GET", "/audit", params={"format": "jsonl"})
    assert lines.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line) for line in lines.text.splitlines()][: len(whole)] == whole
    table = await api.ask("GET", "/audit", params={"format": "csv"})
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [int(row["seq"]) for row in rows][: len(whole)] == [e["seq"] for e in whole]
    assert next(row["detail"] for row in rows if row["kind"] == "detect") == "'=cmd()"
    last = await log_of(api, key, newest="true", limit=2)
    assert last[0]["seq"] + 1 == last[1]["seq"]
    following = [e["seq"] for e in await log_of(api, key)]  # the runtime adds entries of its own
    assert following[following.index(last[0]["seq"]) + 1] == last[1]["seq"]
    later = await log_of(api, key, since="2100-01-01")
    assert later == []


async def test_verification_by_operator_and_tenant(api: Api):
    """Good as written; the operator's also against what was witnessed outside the database."""
    _, key = await api.tenant("acme")
    for path, who in (("/audit/verify", None), ("/tenants/me/audit/verify", key)):
        verdict = (await api.ask("GET", path, who)).json()
        assert verdict["problems"] == []
        assert verdict["entries"] > 0
    witness = api.control.settings.home / "audit.witness"

    async def witnessed() -> bool:
        return witness.exists()

    await until(witnessed)
    said = json.loads(witness.read_text())
    witness.write_text(json.dumps(said | {"hash": "0" * 64}))
    problems = (await api.ask("GET", "/audit/verify")).json()["problems"]
    assert [problem["seq"] for problem in problems] == [said["number"]]


async def test_a_call_that_cannot_be_recorded_is_not_answered(api: Api):
    """Nobody reads unseen: without its entry a call fails."""
    _, key = await api.tenant("acme")
    ledger = api.control.plane.ledger
    head = audit.head(ledger)
    assert head is not None
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_marks SET number = number + 1")
    refused = await api.ask("GET", "/tenants/me/keys", key)
    assert refused.status_code == 500
    assert "keys" not in refused.json()
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_marks SET number = number - 1")
    assert (await api.ask("GET", "/tenants/me/keys", key)).status_code == 200
