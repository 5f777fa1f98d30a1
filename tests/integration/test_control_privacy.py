"""Exports and erasures: everything of a tenant in one archive, and nothing of it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, proof
from polyolo.control.service import audit, tenants
from tests.integration import postgres
from tests.integration.control_plane import GATEWAY, Api, serving, settings, until
from tests.integration.people import Person, join, register, sign_in

CANARY = b"canaryof"
FROM = "203.0.113.77"
MODEL = b"model canaryof weights" + bytes(range(256)) * 8000
NOTHING_RUNS = {"runtime_command": ("/bin/sh", "-c", "exit 0")}  # where runtimes do not matter


async def inhabited(api: Api) -> tuple[Person, str]:
    """Return the owner and a key of a tenant that has something of everything."""
    api.http.headers["polyolo-client-address"] = FROM
    made = await register(api, "canaryof@example.com", "canaryof organization")
    owner, key = await sign_in(api, "canaryof@example.com"), made["api_key"]["key"]

    async def make(path: str, **more: Any) -> dict[str, Any]:
        answer = await owner.ask("POST", f"/tenants/me/{path}", **more)
        assert answer.status_code == 201, answer.text
        return answer.json()

    await make("keys", json={"name": "canaryof key"}, headers={"idempotency-key": "once"})
    client = await make("oauth-clients", json={"name": "canaryof client"})
    await make("models/canaryof-model/versions?classes=canaryof-class", content=MODEL)
    await make("invitations", json={"role": "viewer", "name": "canaryof guest"})
    await join(api, owner, "canaryof-friend@example.com", "developer")
    secret = (client["client_id"], client["client_secret"])
    form = {"grant_type": "client_credentials"}
    token = (await api.http.post("/oauth2/token", data=form, auth=secret)).json()["access_token"]
    await api.http.post("/oauth2/revoke", data={"token": token}, auth=secret)
    await use(api, owner.tenant, ["canaryof-1", "canaryof-2"])
    api.http.headers["polyolo-client-address"] = "198.51.100.1"  # of whoever asks later
    return owner, key


async def use(api: Api, tenant: str, ids: Iterable[str], at: float = 1_767_225_600.0) -> None:
    """Hand over the usage of detections, by default of 2026-01-01."""
    record = {"tenant": tenant, "at": at, "status": 200, "images": 2, "engine_ms": 5.5}
    record |= {"model": "canaryof-model", "version": 1, "bytes_in": 1000}
    record |= {"principal": "key:abc", "source": FROM}
    records = [record | {"id": one} for one in ids]
    answer = await api.http.post("/internal/v1/usage", json=records, headers=GATEWAY)
    assert answer.status_code == 200


async def ordered(api: Api, tenant: str, confirm: str) -> dict[str, Any]:
    """Have the operator order an erasure."""
    answer = await api.ask("POST", f"/tenants/{tenant}/erasure", json={"confirm": confirm})
    assert answer.status_code == 202, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def certificate(api: Api, identifier: str) -> dict[str, Any]:
    """Wait for an erasure's certificate."""

    async def done() -> dict[str, Any] | None:
        said = (await api.http.get(f"/api/v1/erasures/{identifier}")).json()
        return said["certificate"]

    found: dict[str, Any] = await until(done)
    return found


def remains(api: Api) -> list[str]:
    """Return where a canary or the address that it called from lies, in files and in tables."""
    home, engine = api.control.settings.home, api.control.plane.ledger._engine
    found = []
    for place in home.rglob("*"):
        if place.is_file():
            content = place.read_bytes()
            found += [f"{word!r} in {place.name}" for word in words() if word in content]
    with engine.connect() as connection:
        tables = [f'"{table.name}"' for table in db.metadata.sorted_tables]
        if engine.dialect.name == "postgresql":
            tables.append("pg_stats")  # what the server remembers of values
        for table in tables:
            content = repr(connection.exec_driver_sql(f"SELECT * FROM {table}").all()).encode()
            found += [f"{word!r} in {table}" for word in words() if word in content]
    return found


def words() -> tuple[bytes, ...]:
    return CANARY, FROM.encode()


async def test_an_export_holds_everything_and_no_secret(tmp_path: Path):
    """For owner and operator alike, in blocks, signed; model files to the byte; nobody else."""
    async with serving(settings(tmp_path / "home", **NOTHING_RUNS)) as api:
        owner, key = await inhabited(api)
        friend = await sign_in(api, "canaryof-friend@example.com")
        refused = [
            await friend.ask("GET", "/tenants/me/export"),
            await api.ask("GET", "/tenants/me/export", key),
        ]
        assert [answer.status_code for answer in refused] == [403, 403]
        by_owner = await owner.ask("GET", "/tenants/me/export")
        assert by_owner.status_code == 200
        assert by_owner.headers["content-type"] == "application/zip"
        file = tmp_path / "export.zip"
        file.write_bytes((await api.ask("GET", f"/tenants/{owner.tenant}/export")).content)
        stored = [row.digest for table in (db.api_keys, db.oauth_clients, db.users)
                  for row in rows(api, table) if hasattr(row, "digest")]  # fmt: skip
        log = list(audit.entries(api.control.plane.ledger, owner.tenant))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert sorted(json.loads(members["manifest.json"])["members"]) == sorted(
        members.keys() - {"manifest.json"}
    )
    said = {n: json.loads(m) for n, m in members.items() if n.endswith(".json")}
    assert {user["email"] for user in said["users.json"]} == {
        "canaryof@example.com", "canaryof-friend@example.com",
    }  # fmt: skip
    assert [one["id"] for one in said["tenants.json"]] == [owner.tenant]
    assert {one["id"] for one in said["usage_records.json"]} == {"canaryof-1", "canaryof-2"}
    counts = {name: len(said[f"{name}.json"]) for name in (
        "api_keys", "oauth_clients", "invitations", "models", "versions", "sessions",
        "revoked_tokens", "identities",
    )}  # fmt: skip
    assert counts == {
        "api_keys": 2, "oauth_clients": 1, "invitations": 2, "models": 1, "versions": 1,
        "sessions": 3, "revoked_tokens": 1, "identities": 0,
    }  # fmt: skip
    assert members[f"files/{said['versions.json'][0]['digest']}"] == MODEL
    whole = b"".join(members.values())
    assert stored
    assert not [digest for digest in stored if digest.encode() in whole]
    assert key.encode() not in whole
    assert b"$argon2" not in whole
    found = proof.check(file)
    assert (found.kind, found.tenant, found.problems) == ("export", owner.tenant, ())
    assert 10 < found.entries <= len(log)


def rows(api: Api, table: sa.Table) -> list[Any]:
    with api.control.plane.ledger.reading() as connection:
        return list(connection.execute(sa.select(table)).all())


async def test_an_export_is_made_in_blocks(tmp_path: Path):
    """No block is larger than what is gathered, though the model is: memory stays bounded."""
    async with serving(settings(tmp_path / "home", **NOTHING_RUNS)) as api:
        owner, _ = await inhabited(api)
        headers = {"authorization": f"Bearer {api.control.operator_key}"}
        path = f"/api/v1/tenants/{owner.tenant}/export"
        async with api.http.stream("GET", path, headers=headers) as answer:
            blocks = [len(block) async for block in answer.aiter_raw()]
    assert sum(blocks) > len(MODEL)
    assert max(blocks) < 600_000


async def test_a_changed_export_is_found_out(tmp_path: Path):
    """A member changed, missing or added, an entry of the log gone, the manifest made to fit."""
    async with serving(settings(tmp_path / "home", **NOTHING_RUNS)) as api:
        owner, _ = await inhabited(api)
        export = (await owner.ask("GET", "/tenants/me/export")).content
    file = tmp_path / "export.zip"
    file.write_bytes(export)
    with zipfile.ZipFile(file) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    users, log = whole["users.json"], whole["audit.jsonl"].splitlines(keepends=True)
    manifest = json.loads(whole["manifest.json"])
    shorter = b"".join(log[:2] + log[3:])
    fits = {"bytes": len(shorter), "sha256": hashlib.sha256(shorter).hexdigest()}
    forged = manifest | {"members": manifest["members"] | {"audit.jsonl": fits}}
    harms: list[dict[str, bytes | None]] = [
        {"users.json": users.replace(b"developer", b"owner    ")},
        {"users.json": users + b" "},
        {"users.json": users[:-1]},
        {"api_keys.json": None},
        {"more.json": b"{}"},
        {"audit.jsonl": shorter},
        {"audit.jsonl": shorter, "manifest.json": json.dumps(forged).encode()},
        {"manifest.json": json.dumps(manifest | {"tenant": "t_another"}).encode()},
    ]
    for harm in ({}, *harms):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (whole | harm).items():
                if content is not None:
                    archive.writestr(name, content)
        assert bool(proof.check(file).problems) == bool(harm), harm.keys()


async def test_after_an_erasure_nothing_is_left_and_the_certificate_says_so(
    tmp_path: Path, database: str
):
    """Neither files nor tables nor statistics know a word of it; the log still verifies."""
    async with serving(settings(tmp_path / "home")) as api:
        owner, key = await inhabited(api)
        await api.ready(owner.tenant)
        held = remains(api)  # else the search would find nothing in any build
        assert any("canaryof" in one for one in held)
        assert any(FROM in one for one in held)
        wrong = await owner.ask("POST", "/tenants/me/erasure", json={"confirm": "another"})
        assert wrong.status_code == 422
        name = (await owner.ask("GET", "/tenants/me")).json()["name"]
        answer = await owner.ask(
            "POST",
            "/tenants/me/erasure",
            json={"confirm": name},
            headers={"idempotency-key": "erase-once"},
        )
        assert answer.status_code == 202, answer.text
        identifier = answer.json()["id"]
        assert (await api.ask("GET", "/tenants/me/keys", key)).status_code == 401
        assert (await owner.ask("GET", "/tenants/me")).status_code == 401
        said = await certificate(api, identifier)
        assert remains(api) == []
        await use(api, owner.tenant, ["canaryof-late"])  # a gateway that was cut off for a while
        assert remains(api) == []
        assert await ordered(api, owner.tenant, owner.tenant) == (
            (await api.http.get(f"/api/v1/erasures/{identifier}")).json()
        )
        assert not (api.control.settings.run / owner.tenant).exists()
        assert audit.verified(api.control.plane.ledger).problems == ()
        assert (await api.ask("GET", f"/tenants/{owner.tenant}")).status_code == 404
        again = await api.ask("GET", "/erasures")
        assert [one["certificate"] for one in again.json()["erasures"]] == [said]
        assert (await api.http.get("/api/v1/erasures/er_nothing")).status_code == 404
        public = api.control.plane.ledger.signer.public
        if database == "postgresql":
            await in_the_servers_files(api)
    assert said["removed"] == {
        "api_keys": 2, "artifacts": 1, "data_keys": 1, "invitations": 2, "models": 1,
        "oauth_clients": 1,
        "replays": 1, "revoked_tokens": 1, "runtimes": 1, "sessions": 2, "tenants": 1,
        "touched": 1, "uploads": 1, "usage_months": 1, "users": 2, "versions": 1,
        "words of audit entries": said["removed"][
            "words of audit entries"
        ],
    }  # fmt: skip
    assert said["removed"]["words of audit entries"] > 20
    assert len(said["files"]) == 1
    sums = {"requests": 2, "images": 4, "errors": 0, "engine_ms": 11, "bytes_in": 2000}
    assert said["usage"] == {"2026-01": sums}
    assert [kept["until"] for kept in said["kept"]][2].endswith("-12-31")
    assert said["requested_by"] == f"user:{owner.user}"
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(said, indent=2))
    found = proof.check(file)
    assert (found.kind, found.problems) == ("certificate of erasure", ())
    assert found.public_key == public
    file.write_text(json.dumps(said | {"files": []}))
    assert proof.check(file).problems == ("it is not as it was signed",)


async def in_the_servers_files(api: Api) -> None:
    """What docs/privacy.md tells an operator of PostgreSQL to run takes the last bytes away."""
    engine = api.control.plane.ledger._engine
    with engine.connect() as connection:
        number = connection.exec_driver_sql(
            "SELECT oid FROM pg_database WHERE datname = current_database()"
        ).scalar_one()
        raw: Any = connection.connection.driver_connection
        connection.detach()
        raw.rollback()
        raw.autocommit = True
        raw.execute("VACUUM FULL")
        raw.execute("CHECKPOINT")
    files = Path(os.environ[postgres.VARIABLE]) / "data" / "base" / str(number)
    places = [place for place in files.iterdir() if place.is_file()]
    assert len(places) > 100
    assert [place.name for place in places if CANARY in place.read_bytes()] == []


async def test_an_erasure_that_was_cut_short_is_finished_at_the_next_start(tmp_path: Path):
    """Ordered, or with its rows gone already, when everything was killed: it goes on by itself."""
    chosen = settings(tmp_path / "home", **NOTHING_RUNS)
    found = []
    for half_done in (False, True):
        async with serving(chosen) as api:
            owner, _ = await inhabited(api)
            name = (await owner.ask("GET", "/tenants/me")).json()["name"]
            api.control.leader.stop()  # nobody reconciles any more
            found.append((await ordered(api, owner.tenant, name))["id"])
            if half_done:
                assert tenants.forget(api.control.plane.ledger, owner.tenant)
            assert remains(api) != []
        async with serving(chosen) as api:
            assert (await certificate(api, found[-1]))["removed"]["users"] == 2
            assert remains(api) == []


async def test_a_tenant_that_was_deleted_before_can_still_be_erased(tmp_path: Path):
    """By its id, by the operator: its words in the log and its detections go."""
    async with serving(settings(tmp_path / "home", **NOTHING_RUNS)) as api:
        owner, _ = await inhabited(api)
        other, _ = await api.tenant("other")
        before = len(list(audit.entries(api.control.plane.ledger, other)))
        assert (await api.ask("DELETE", f"/tenants/{owner.tenant}")).status_code == 204

        async def gone() -> bool:
            return not [row for row in rows(api, db.tenants) if row.id == owner.tenant]

        await until(gone)
        assert remains(api) != []
        unknown = await api.ask("POST", "/tenants/t_nothing/erasure", json={"confirm": "x"})
        assert unknown.status_code == 404
        said = await certificate(api, (await ordered(api, owner.tenant, owner.tenant))["id"])
        assert said["usage"]["2026-01"]["images"] == 4
        assert remains(api) == []
        kept = list(audit.entries(api.control.plane.ledger, other))
        assert len(kept) >= before
        assert any(entry.resource == "tenants/other" for entry in kept)  # nobody else's words
