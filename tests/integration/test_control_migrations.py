"""The schema on both databases: what the code says, from every released revision upwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from polyolo.control import db, migrations
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from tests.integration.control_plane import database_url

SCRIPTS = str(Path(migrations.__file__).parent)
REVISIONS = [script.revision for script in ScriptDirectory(SCRIPTS).walk_revisions()][::-1]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = db.open_engine(database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}")
    yield engine
    engine.dispose()


def upgrade(engine: sa.Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    with db.writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_the_migrations_give_the_tables_of_the_code(engine: sa.Engine):
    """No difference in any column; a second run changes nothing."""
    migrate(engine)
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), db.metadata) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision_is_brought_up_with_its_rows(engine: sa.Engine, revision: str):
    """Tenants, keys and events of any release are there afterwards, the events in the chain."""
    upgrade(engine, revision)
    with db.writing(engine) as connection:
        for statement in (
            "INSERT INTO tenants (id, name, plan, state, created_at)"
            " VALUES ('t_0123456789', 'acme', 'default', 'active', 1.5)",
            "INSERT INTO api_keys (id, tenant, name, digest, scopes, created_at)"
            " VALUES ('k', 't_0123456789', 'ci', 'd', '[\"detect\"]', 1.5)",
            "INSERT INTO events (seq, at, actor, action, tenant, resource, detail)"
            " VALUES (3, 1.5, 'operator', 'tenant.create', 't_0123456789', 'tenants/acme', '')",
            "INSERT INTO events (seq, at, actor, action, tenant, resource, detail)"
            " VALUES (7, 2.5, 'operator', 'key.create', 't_0123456789', 'keys/k', 'detect')",
        ):
            connection.exec_driver_sql(statement)
    migrate(engine)
    ledger = Ledger(engine, audit.opened(engine, Vault(LocalMaster(bytes(32)))))
    with ledger.reading() as connection:
        assert connection.execute(sa.select(db.tenants.c.name)).scalars().all() == ["acme"]
        assert connection.execute(sa.select(db.api_keys.c.scopes)).scalars().all() == [["detect"]]
    kept = [(entry.seq, entry.at, entry.action) for entry in audit.entries(ledger)]
    assert kept == [(1, 1.5, "tenant.create"), (2, 2.5, "key.create")]
    assert audit.verified(ledger).problems == ()


def test_a_newer_database_is_left_alone(engine: sa.Engine):
    """A release that does not know the schema refuses with a sentence."""
    migrate(engine)
    with db.writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RuntimeError, match="newer release"):
        migrate(engine)
