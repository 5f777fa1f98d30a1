"""kill -9 around audited changes: no change without its record, no record without its change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.access import OPERATOR
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, tenants
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.types import Plan
from tests.integration.control_plane import database_url

KILLS = 100

# Forks writers, and kills each within a few milliseconds of its first change; so the programs are
# loaded once and not a hundred times.
KILLER = """
import os, random, signal, sys, time
from polyolo.control import db
from polyolo.control.access import OPERATOR
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, keys
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault

url, tenant, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(7)

def write(told):
    engine = db.open_engine(url)
    ledger = Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32)))))
    while True:
        key = keys.create(ledger, OPERATOR, tenant, name="x")
        os.write(told, b".")
        keys.revoke(ledger, OPERATOR, tenant, key.id)

for _ in range(kills):
    hears, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(told)
        finally:
            os._exit(1)
    os.close(told)
    os.read(hears, 1)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(hears)
    assert os.WIFSIGNALED(status), "the writer failed by itself"
"""


def test_changes_and_records_are_one(tmp_path: Path):
    """After 100 kills every key has its entry, every revocation too, and the chain holds."""
    url = database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}"
    engine = db.open_engine(url)
    migrate(engine)
    ledger = Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32)))))
    tenant = tenants.create(ledger, OPERATOR, "acme", None, [Plan(name="default")])
    subprocess.run(
        [sys.executable, "-c", KILLER, url, tenant.id, str(KILLS)],
        cwd=Path(__file__).parents[2],
        check=True,
    )
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(db.api_keys.c.id, db.api_keys.c.revoked_at)).all()
    entries = list(audit.entries(ledger))
    engine.dispose()
    recorded = {e.resource for e in entries if e.action == "key.create"}
    revoked = {e.resource for e in entries if e.action == "key.revoke"}
    assert recorded == {f"keys/{row.id}" for row in rows}
    assert revoked == {f"keys/{row.id}" for row in rows if row.revoked_at is not None}
    assert len(recorded) > KILLS
    assert audit.verified(ledger).problems == ()
    engine.dispose()
