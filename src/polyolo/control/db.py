"""The tables, and how a transaction begins and ends on SQLite and on PostgreSQL.

Only this module knows that databases differ. A schema change is a new migration under
`migrations/versions`, and the same change here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from polyolo.errors import InsufficientStorageError, InvalidValueError, NotReadyError

metadata = sa.MetaData(
    naming_convention={  # constraints need names to be altered by a later migration
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

platform = sa.Table(
    "platform",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("standard_digest", sa.String(64)),
    sa.Column("standard_label", sa.String(200), nullable=False),
    sa.Column("standard_version", sa.Integer, nullable=False),
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(63), unique=True),  # null once deleting: the name is free again
    sa.Column("plan", sa.String(63), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # active, suspended, deleting
    sa.Column("default_model", sa.String(63)),  # null: the standard model
    sa.Column("created_at", sa.Double, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("last_used_at", sa.Double),  # to a minute
    sa.Column("sources", sa.JSON),  # networks; null: from anywhere
    sa.Column("replaced_by", sa.String(12)),  # the key that it was rotated to
)

oauth_clients = sa.Table(
    "oauth_clients",
    metadata,
    sa.Column("id", sa.String(15), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Column("last_used_at", sa.Double),
)

revoked_tokens = sa.Table(
    "revoked_tokens",  # until they would have ended anyway
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("client", sa.String(15), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

signing_keys = sa.Table(
    "signing_keys",  # of access tokens
    metadata,
    sa.Column("id", sa.String(43), primary_key=True),  # thumbprint of the key (RFC 7638)
    sa.Column("public", sa.JSON, nullable=False),  # JWK
    sa.Column("private", sa.Text, nullable=False),  # JWK, sealed
    sa.Column("signs_from", sa.Double, nullable=False),  # until the next one does
)

artifacts = sa.Table(
    "artifacts",  # what was found in a model file, so that no file is judged twice
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("family", sa.String(63), nullable=False),
    sa.Column("classes", sa.JSON(none_as_null=True)),  # null: only seen beside a list of names
    sa.Column("input", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("tenant", sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("current", sa.Integer, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),  # versions that were current, oldest first
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.ForeignKey("artifacts.digest"), nullable=False, index=True),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.name"]),
)

runtimes = sa.Table(
    "runtimes",
    metadata,
    sa.Column("tenant", sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),  # of the desired state
    sa.Column("status", sa.JSON, nullable=False),  # RuntimeStatus as last observed
)

events = sa.Table(
    "events",  # no foreign keys: what happened outlives whom it happened to
    metadata,
    sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),  # SQLite counts up INTEGER only
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("action", sa.String(63), nullable=False),
    sa.Column("tenant", sa.String(12), index=True),
    sa.Column("resource", sa.String(200), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("kind", sa.String(8), nullable=False, server_default="change"),  # call, detect
    sa.Column("source", sa.String(64), nullable=False, server_default=""),  # address of the caller
    sa.Column("status", sa.Integer, nullable=False, server_default="0"),  # HTTP; 0: a change
    # See control.audit. Null only in rows of a release that kept no chain.
    sa.Column("number", sa.BigInteger),  # within its tenant's entries, from 1
    sa.Column("digest", sa.String(64)),
    sa.Column("chain", sa.String(64)),  # over the tenant's entries
    sa.Column("whole", sa.String(64)),  # over all entries
    sa.Column("signature", sa.String(128)),  # in the last entry of each transaction
    sa.Index("ix_events_kind_seq", "kind", "seq"),
)

audit_marks = sa.Table(
    "audit_marks",  # signed: where each chain ends, and where it begins after pruning
    metadata,
    sa.Column("chain", sa.String(12), primary_key=True),  # tenant's id, "" platform, * whole
    sa.Column("kind", sa.String(8), primary_key=True),  # head, anchor
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128), nullable=False),
)

audit_keys = sa.Table(
    "audit_keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("sealed", sa.Text, nullable=False),  # the private key
)

data_keys = sa.Table(
    "data_keys",  # what seals the secrets of one tenant; see control.secrets
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),  # no foreign key: "" is the platform
    sa.Column("wrapped", sa.Text, nullable=False),
)

lease = sa.Table(
    "lease",  # who reconciles; see control.leader
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("epoch", sa.BigInteger, nullable=False),  # grows with every change of holder
    sa.Column("holder", sa.String(200), nullable=False),  # empty: given up
    sa.Column("beat", sa.BigInteger, nullable=False),  # grows while the holder is alive
)

usage_records = sa.Table(
    "usage_records",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(12), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("engine_ms", sa.Double, nullable=False),
    sa.Column("bytes_in", sa.BigInteger, nullable=False),
    sa.Column("cold_start", sa.Boolean, nullable=False),
    sa.Index("ix_usage_records_tenant_at", "tenant", "at"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("email", sa.Text, nullable=False),  # sealed, if the platform seals
    sa.Column("email_digest", sa.String(64), unique=True, nullable=False),  # to find it by
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password", sa.String(200), nullable=False),  # argon2id, its salt included
    sa.Column("created_at", sa.Double, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # of what the cookie holds
    sa.Column("user", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),  # to a minute
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), index=True),  # null: to register a new one
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double),
)

replays = sa.Table(
    "replays",  # answers to requests with an Idempotency-Key, for a day
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # digest of who asked and of the key
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("request", sa.String(64), nullable=False),  # digest of what was asked; "" till done
    sa.Column("status", sa.Integer, nullable=False),  # 0: not answered yet
    sa.Column("answer", sa.LargeBinary, nullable=False),  # encrypted
)

_WRITES = "polyolo_writes"  # execution option of a transaction that is going to write
_WRITER_LOCK = 0x706F6C79
"""Key of PostgreSQL's advisory lock that makes writers take turns, as they do on SQLite: what one
reads (the next version's number, the room in a plan) is still so when it commits."""


def open_engine(url: str) -> sa.Engine:
    """Return an engine on `url`. Connections are made when first needed; threads may share it."""
    address = sa.make_url(url)
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(
        address,
        pool_size=4,  # the usual load: a few workers and handlers at once
        max_overflow=60,  # 40 handler threads and the reconciler can never wait for each other
        pool_pre_ping=not url.startswith("sqlite"),  # a server may have dropped the connection
    )
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # we begin transactions, not the sqlite3 module
    for pragma in (
        "busy_timeout=30000",  # milliseconds; first, since the next one may have to wait
        "journal_mode=WAL",  # readers never wait for the writer
        "foreign_keys=ON",
        # A key or a model version that was answered 201 must survive a power cut. One fsync a
        # change is affordable, since requests for detections never write here.
        "synchronous=FULL",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: a transaction that read first and then wanted to write
    # could not wait for another writer, it would fail with SQLITE_BUSY.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection on which every query sees the same moment."""
    with _worded(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection whose changes are kept together when the block ends, or not at all."""
    with _worded(), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITES: True})
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            yield connection


@contextmanager
def _worded() -> Iterator[None]:
    try:
        yield
    except sa.exc.DataError as error:  # PostgreSQL only: SQLite stores whatever it is given
        raise InvalidValueError("a text holds a character that cannot be stored") from error
    except sa.exc.OperationalError as error:
        reason = str(error.orig)
        if "disk is full" in reason or "No space left" in reason:
            raise InsufficientStorageError(
                "the disk of the database is full; nothing was changed"
            ) from error
        if "locked" in reason:
            raise NotReadyError("the database is busy; nothing was changed") from error
        if type(error.orig).__module__.startswith("psycopg"):  # the server is away, or gives up
            raise NotReadyError("the database does not answer, try again shortly") from error
        raise


def insert_new(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert those rows whose primary key is not there yet."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))
