"""Two control planes on one database: both answer, one reconciles, the other takes over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polyolo.control import db, leader
from polyolo.control.changes import Changes
from polyolo.control.leader import EXPIRY_S, SURE_S, Leader
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, lease
from polyolo.control.service.lease import DeposedError
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from tests.integration.control_plane import GATEWAY, database_url, running, serving, settings, until


def pair(tmp_path: Path) -> tuple[Any, Any]:
    """Return the settings of two control planes that share what they must share."""
    one = settings(tmp_path / "one")
    shared = database_url(tmp_path) or f"sqlite:///{tmp_path / 'shared.db'}"
    one = replace(one, database=shared, store=str(tmp_path / "store"))
    two = replace(one, home=tmp_path / "two")
    for chosen in (one, two):
        chosen.home.mkdir(mode=0o700, exist_ok=True)
        (chosen.home / "operator.key").write_text("po_" + "k" * 43)
        (chosen.home / "master.key").write_text("A" * 43 + "=")
    return one, two


async def test_the_second_serves_and_takes_over(tmp_path: Path):
    """What is changed at one is in force through the other; when one ends, the other goes on."""
    one, two = pair(tmp_path)
    async with serving(two) as other, serving(one) as api:  # the second does not reconcile
        tenant, key = await api.tenant("acme")
        await other.ready(tenant)
        assert (two.run / tenant).exists()
        assert not (one.run / tenant).exists()
        pushed = await api.ask(
            "POST", "/tenants/me/models/city/versions", key, content=b"model one"
        )
        assert pushed.status_code == 201
        assert other.spec(tenant)["default_model"] == "city"
        await leaves_on_revoke(api, other, key)
        await other.ready(tenant)
        pid = other.pid(tenant)
        other.control.release()
        # The one that reconciles goes: its lease is given up, not waited out.
        leading = other.control.leader
        started = time.monotonic()
        await asyncio.to_thread(leading.stop)

        async def moved() -> bool:
            return (one.run / tenant / "runtime.json").exists()

        await until(moved)
        await api.ready(tenant)
        assert time.monotonic() - started < 5
        assert not running(pid)
        assert running(api.pid(tenant))
        assert audit.verified(api.control.plane.ledger).problems == ()


async def leaves_on_revoke(here: Any, there: Any, key: str) -> None:
    """A key revoked here is out of the snapshot there within a second."""
    made = (await here.ask("POST", "/tenants/me/keys", key, json={})).json()

    async def keys() -> set[str]:
        answer = await there.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)
        return {entry["id"] for entry in answer.json()["keys"]}

    async def known() -> bool:
        return made["id"] in await keys()

    async def gone() -> bool:
        return made["id"] not in await keys()

    await until(known, within=1)
    assert (await here.ask("DELETE", f"/tenants/me/keys/{made['id']}", key)).status_code == 204
    await until(gone, within=1)


async def test_two_under_load_agree(tmp_path: Path):
    """Changes and usage through both at once: each once, one chain, no 5xx."""
    command = ("/bin/sh", "-c", "exit 0")  # runtimes are not what is tested here
    one, two = (replace(chosen, runtime_command=command) for chosen in pair(tmp_path))
    async with serving(one) as first, serving(two) as second:
        _, key = await first.tenant("acme")

        async def write(api: Any, writer: int) -> list[int]:
            codes = []
            for number in range(8):
                name = f"{writer}-{number}"
                made = await api.ask("POST", "/tenants/me/keys", key, json={"name": name})
                record = {"id": f"r{number}", "tenant": "t_x", "at": 1.0, "status": 200}
                used = await api.http.post("/internal/v1/usage", json=[record], headers=GATEWAY)
                codes += [made.status_code, used.status_code]
            return codes

        tasks = [write(api, writer) for writer, api in enumerate([first, second] * 3)]
        codes = await asyncio.gather(*tasks)
        assert {code for batch in codes for code in batch} == {200, 201}
        lists = [(await api.ask("GET", "/tenants/me/keys", key)).json() for api in (first, second)]
        assert lists[0] == lists[1]
        assert len(lists[0]["keys"]) == 49
        ledger = first.control.plane.ledger
        assert audit.verified(ledger).problems == ()
        detections = list(audit.entries(ledger, "t_x"))
        assert sorted(entry.detail for entry in detections) == [f"r{n}" for n in range(8)]


class Fakes:
    """Leaders on one ledger whose clocks are set by hand; each counts who works."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.working: set[str] = set()
        self.guarded: dict[str, Ledger] = {}
        self.looked_at: list[str] = []

    def leader(self, name: str, clock: Callable[[], float]) -> Leader:
        def begin(guarded: Ledger, _: Callable[[], bool]) -> Any:
            self.working.add(name)
            self.guarded[name] = guarded
            return [Worker(self.looked_at)], lambda: self.working.discard(name)

        return Leader(self.ledger, Changes(0), name, begin, clock=clock)


class Worker:
    """Stands for a reconciler; keeps whom it was told to look at."""

    def __init__(self, looked_at: list[str]) -> None:
        self.looked_at = looked_at

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        self.looked_at += tenants

    def stop(self) -> None: ...

    def alive(self) -> bool:
        return True


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    engine = db.open_engine(database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}")
    migrate(engine)
    yield Fakes(Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32))))))
    engine.dispose()


def settle(one: Leader) -> None:
    if one._retiring is not None:
        one._retiring.join()


def test_a_holder_that_falls_silent_is_replaced_and_fenced(fakes: Fakes):
    """It stops by its own clock before the other may start, and cannot write afterwards."""
    now = {"a": 100.0, "b": 5.0}  # clocks of two machines have nothing in common
    a = fakes.leader("a", lambda: now["a"])
    b = fakes.leader("b", lambda: now["b"])
    a._turn()
    b._turn()
    assert fakes.working == {"a"}
    assert a.leads()
    assert not b.leads()
    now["b"] += EXPIRY_S - 0.1
    b._turn()
    assert not b.leads()
    now["a"] += SURE_S
    assert not a.leads()  # it could not beat: unsure, waits
    now["b"] += 0.2
    b._turn()
    assert b.leads()
    with pytest.raises(DeposedError), fakes.guarded["a"].changing():
        pass
    with fakes.guarded["b"].changing():
        pass
    a._turn()
    settle(a)
    assert fakes.working == {"b"}


def test_a_beating_holder_keeps_the_lease_whatever_the_clocks_do(fakes: Fakes):
    """Hours pass for the other one between two looks; it sees a beat each time."""
    now = {"a": 100.0, "b": 5.0}
    a = fakes.leader("a", lambda: now["a"])
    b = fakes.leader("b", lambda: now["b"])
    a._turn()
    for _ in range(5):
        b._turn()
        now["a"] += leader.BEAT_S
        a._turn()
        now["b"] += 5 * 3600
        b._turn()
        assert fakes.working == {"a"}
        assert a.leads()


def test_who_begins_is_told_of_later_changes_only(fakes: Fakes):
    """Workers look at everybody as they begin: with many tenants, once more would cost seconds."""
    for tenant in ("t_old", "t_older"):
        with fakes.ledger.changing() as transaction:
            transaction.touch(tenant)
    a = fakes.leader("a", lambda: 100.0)
    a._turn()
    a._follow()
    assert fakes.looked_at == []
    with fakes.ledger.changing() as transaction:
        transaction.touch("t_new")
    a._follow()
    assert fakes.looked_at == ["t_new"]


def test_a_lost_answer_costs_nothing(fakes: Fakes):
    """A beat that was committed while its answer was lost: the holder goes on."""
    now = 100.0
    a = fakes.leader("a", lambda: now)
    a._turn()
    held = a._held
    assert held is not None
    assert lease.beat(fakes.ledger, held) is not None  # as if a's own, unanswered
    now += leader.BEAT_S
    a._turn()
    a._turn()
    assert a.leads()
    assert fakes.working == {"a"}
    assert lease.read(fakes.ledger).beat == 2


def test_only_one_of_many_takes_a_free_lease(fakes: Fakes):
    """Eight at the same moment: one."""
    many = [fakes.leader(f"l{number}", lambda: 1.0) for number in range(8)]
    start = threading.Barrier(8)

    def race(one: Leader) -> None:
        start.wait()
        one._turn()

    threads = [threading.Thread(target=race, args=(one,)) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fakes.working) == 1
    with fakes.ledger.reading() as connection:
        assert connection.execute(sa.select(db.lease.c.epoch)).scalar_one() == 1
