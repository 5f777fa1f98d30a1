"""The PostgreSQL server goes away under two control planes: told in words, nothing done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polyolo.control import db
from polyolo.control.leader import EXPIRY_S, SURE_S, Leader
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, lease
from polyolo.control.service.lease import DeposedError
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.errors import NotReadyError
from tests.integration import postgres
from tests.integration.control_plane import Api, running, serving, until
from tests.integration.test_control_two import Fakes, pair, settle


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[postgres.Server]:
    """A server of this test's own, to be stopped."""
    with postgres.server() as server:
        monkeypatch.setenv(postgres.VARIABLE, str(server.directory))
        yield server


class Writers:
    """Make keys through both control planes without a pause, and keep what was answered."""

    def __init__(self, planes: list[Api], key: str) -> None:
        self.answers: list[tuple[str, int, str]] = []
        self._planes = planes
        self._key = key
        self._done = False

    async def write(self, number: int) -> None:
        made = 0
        while not self._done:
            api, name = self._planes[number % len(self._planes)], f"{number}-{made}"
            answer = await api.ask("POST", "/tenants/me/keys", self._key, json={"name": name})
            self.answers.append((name, answer.status_code, answer.text))
            if answer.status_code == 201:
                made += 1
                path = f"/tenants/me/keys/{answer.json()['id']}"
                await api.ask("DELETE", path, self._key)
            await asyncio.sleep(0.01)

    def done(self) -> None:
        self._done = True

    def statuses(self, since: int = 0) -> set[int]:
        return {status for _, status, _ in self.answers[since:]}


async def test_both_go_on_by_themselves_whatever_the_server_does(
    tmp_path: Path, server: postgres.Server
):
    """Connections cut in the middle of changes, then the server gone and back.

    503 in words meanwhile and nothing else; what was answered is there once; the runtime runs on;
    one of the two reconciles, and takes up what changed.
    """
    one, two = pair(tmp_path)
    async with serving(one) as first, serving(two) as second:
        tenant, key = await first.tenant("acme")
        await first.ready(tenant)
        pid, planes = first.pid(tenant), [first, second]
        writers = Writers(planes, key)
        tasks = [asyncio.create_task(writers.write(number)) for number in range(4)]

        for _ in range(10):
            written = len(writers.answers)
            await asyncio.to_thread(cut_all, server)
            await until(more_than(writers, written + 4))
        assert writers.statuses() <= {201, 503}

        gone = len(writers.answers)
        await asyncio.to_thread(server.stop)
        told = len(writers.answers)
        await until(more_than(writers, told + 20))
        assert writers.statuses(told + 4) == {503}
        texts = {text for _, status, text in writers.answers[gone:] if status == 503}
        assert all("the database does not answer, try again shortly" in text for text in texts)
        for api in planes:
            assert (await api.http.get("/readyz")).status_code == 503
            assert (await api.http.get("/livez")).status_code == 200
        assert running(pid)
        await asyncio.to_thread(server.start)

        async def made_again() -> bool:
            return any(status == 201 for _, status, _ in writers.answers[back:])

        back = len(writers.answers)
        await until(made_again)
        writers.done()
        await asyncio.gather(*tasks)
        assert writers.statuses() == {201, 503}
        for api in planes:
            assert (await api.http.get("/readyz")).status_code == 200
        assert running(pid)

        # Whoever reconciles takes up a change, through either of the two.
        pushed = await second.ask(
            "POST", "/tenants/me/models/city/versions", key, content=b"model one"
        )
        assert pushed.status_code == 201
        await first.ready(tenant)
        leading = [api for api in planes if api.control.leader.leads()]
        assert len(leading) == 1
        assert leading[0].spec(tenant)["default_model"] == "city"
        ledger = first.control.plane.ledger
        assert audit.verified(ledger).problems == ()
        answered = [name for name, status, _ in writers.answers if status == 201]
        created = [entry for entry in audit.entries(ledger, tenant) if entry.action == "key.create"]
        assert len(answered) == len(set(answered))
        assert len(created) >= len(answered)


def more_than(writers: Writers, count: int) -> Callable[[], Any]:
    async def look() -> bool:
        return len(writers.answers) > count

    return look


def cut_all(server: postgres.Server) -> None:
    """End every connection but our own, as a fail-over or an administrator does."""
    with psycopg.connect(host=str(server.directory), user="postgres") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


def test_a_holder_that_lost_the_server_is_fenced_once_another_took_over(
    tmp_path: Path, server: postgres.Server
):
    """It stops by its own clock while the server is away, and cannot write when it is back."""
    engine = db.open_engine(postgres.url(server.directory, str(tmp_path)))
    migrate(engine)
    fakes = Fakes(Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32))))))
    now = {"a": 100.0, "b": 5.0}
    a: Leader = fakes.leader("a", lambda: now["a"])
    b: Leader = fakes.leader("b", lambda: now["b"])
    a._turn()
    b._turn()
    server.stop()
    now["a"] += SURE_S
    now["b"] += EXPIRY_S
    for one in (a, b):
        with pytest.raises(NotReadyError):
            one._turn()
        assert not one.leads()
    assert fakes.working == {"a"}  # its runtimes go on; nobody may act on them
    server.start()
    b._turn()
    assert b.leads()
    with pytest.raises(DeposedError), fakes.guarded["a"].changing():
        pass
    with fakes.guarded["b"].changing():
        pass
    a._turn()
    settle(a)
    assert fakes.working == {"b"}
    assert lease.read(fakes.ledger).epoch == 2
    engine.dispose()


def test_a_holder_that_is_back_first_keeps_the_lease(tmp_path: Path, server: postgres.Server):
    """The same absence; it beats before the other one looks, and goes on in its epoch."""
    engine = db.open_engine(postgres.url(server.directory, str(tmp_path)))
    migrate(engine)
    fakes = Fakes(Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32))))))
    now = {"a": 100.0, "b": 5.0}
    a = fakes.leader("a", lambda: now["a"])
    b = fakes.leader("b", lambda: now["b"])
    a._turn()
    b._turn()
    server.stop()
    now = {name: moment + EXPIRY_S for name, moment in now.items()}
    with pytest.raises(NotReadyError):
        a._turn()
    server.start()
    a._turn()
    b._turn()
    assert a.leads()
    assert not b.leads()
    assert fakes.working == {"a"}
    assert lease.read(fakes.ledger).epoch == 1
    engine.dispose()
