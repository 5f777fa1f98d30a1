"""kill -9 around every step of an erasure: whoever goes on finishes it, once, with nothing left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.access import OPERATOR
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, erasures, holdings, tenants
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.types import Plan
from tests.integration.control_plane import database_url

NOW = 1_780_000_000.0  # in 2026
CANARY = b"canaryof"

# Forks processes that erase, each killed just before or just after the commit of its n-th
# transaction, or around the cleaning of the database; the next one goes on.
KILLER = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from polyolo.control import db
from polyolo.control.access import OPERATOR
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, erasures, tenants
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault

url, tenant, file = sys.argv[1:]

class Killed(Ledger):
    left = 0

    def step(self):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    @contextmanager
    def changing(self):
        with super().changing() as transaction:
            yield transaction
            self.step()
        self.step()

    def scrub(self):
        self.step()
        done = super().scrub()
        self.step()
        return done

def erase(left):
    engine = db.open_engine(url)
    vault = Vault(LocalMaster(bytes(32)))
    ledger = Killed(engine, audit.opened(engine, vault), clock=lambda: 1_780_000_000.0)
    ledger.left = left
    erasures.order(ledger, OPERATOR, tenant)
    tenants.forget(ledger, tenant)

    def discard(digests):
        Path(file).unlink(missing_ok=True)
        ledger.step()

    while not erasures.advance(
        ledger, vault, tenant, platform="https://x", audit_days=365, discard=discard
    ):
        pass

survived = False
for left in range(40):
    child = os.fork()
    if child == 0:
        try:
            erase(left)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    survived = survived or not os.WIFSIGNALED(status)
    print(left, status)
assert survived
"""


def lived_in(tmp_path: Path) -> tuple[Ledger, Vault, str]:
    """Return a database with a tenant that did things over three months, and its id."""
    engine = db.open_engine(database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}")
    migrate(engine)
    vault = Vault(LocalMaster(bytes(32)))
    ledger = Ledger(engine, audit.opened(engine, vault), clock=lambda: NOW)
    made = tenants.create(ledger, OPERATOR, "canaryof", None, [Plan(name="default")])
    with ledger.changing() as transaction:
        for number in range(3000):  # more than one transaction takes the words from
            what = f"models/canaryof-{number}"
            transaction.note("key:a", "model.use", tenant=made.id, resource=what, detail="canaryof")
        record = {"tenant": made.id, "status": 200, "model": "canaryof", "version": 1, "images": 1}
        record |= {"engine_ms": 1.0, "bytes_in": 1, "cold_start": False}
        transaction.connection.execute(
            db.usage_records.insert(),
            [record | {"id": f"canaryof{n}", "at": NOW - n * 86400.0 * 20} for n in range(5)],
        )
    return ledger, vault, made.id


def test_killed_around_every_step_it_is_finished_by_the_next(tmp_path: Path, database: str):
    """One certificate that counts everything once; the log verifies; no word is left."""
    ledger, _, tenant = lived_in(tmp_path)
    url = database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}"
    file = tmp_path / "weights"
    file.write_bytes(CANARY)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, url, tenant, str(file)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" 9\n") > 8, done.stdout  # kills, before one went through
    (made,) = erasures.every(ledger)
    said = made.certificate
    assert said is not None
    assert sum(month["images"] for month in said.usage.values()) == 5
    assert sorted(said.usage) == ["2026-03", "2026-04", "2026-05"]
    assert said.removed["api_keys"] == said.removed["tenants"] == 1
    assert said.removed["words of audit entries"] == 3002  # and what made it, and its key
    assert audit.verified(ledger).problems == ()
    actions = [entry.action for entry in audit.entries(ledger, tenant)]
    for once in ("tenant.erase", "tenant.gone", "tenant.erased"):
        assert actions.count(once) == 1
    assert not file.exists()
    with ledger.reading() as connection:
        for table in db.metadata.sorted_tables:
            said_there = repr(connection.execute(sa.select(table)).all())
            assert CANARY.decode() not in said_there, table.name
    ledger._engine.dispose()
    if database == "sqlite":
        places = [place for place in tmp_path.iterdir() if CANARY in place.read_bytes()]
        assert places == []


def test_certificates_go_when_they_need_not_be_kept(tmp_path: Path):
    """Ten years after the end of the year, with the sums in them."""
    ledger, vault, tenant = lived_in(tmp_path)
    erasures.order(ledger, OPERATOR, tenant)
    tenants.forget(ledger, tenant)
    while not erasures.advance(
        ledger, vault, tenant, platform="https://x", audit_days=365, discard=lambda _: None
    ):
        continue
    (made,) = erasures.every(ledger)
    assert made.certificate is not None
    assert made.certificate.kept[2].until == "2036-12-31"
    ledger.clock = lambda: 2_114_380_799.0  # the last second of that year
    erasures.prune(ledger)
    assert erasures.every(ledger) == [made]
    ledger.clock = lambda: 2_114_380_800.0
    erasures.prune(ledger)
    assert erasures.every(ledger) == []
    ledger._engine.dispose()


def test_every_table_is_somebodys(database: str):
    """A new table holds something of tenants, and goes with them, or is named as an exception."""
    del database
    for table in db.metadata.sorted_tables:
        own: Any = holdings.of(table, "t_x")
        assert (own is None) == (table.name in holdings.PLATFORM), table.name
    assert {table.name for table in db.metadata.sorted_tables} > holdings.OUTLIVING
