"""How a transaction begins and ends on SQLite and on PostgreSQL.

Only this module knows that databases differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from polyolo.errors import InsufficientStorageError, InvalidValueError, NotReadyError

_WRITES = "polyolo_writes"  # execution option of a transaction that is going to write
_WRITER_LOCK = 0x706F6C79
"""Key of PostgreSQL's advisory lock that makes writers take turns, as they do on SQLite: what one
reads (the next version's number, the room in a plan) is still so when it commits."""

_ANSWERS_OR_IS_GONE = {"connect_timeout": 5, "keepalives_idle": 5, "tcp_user_timeout": 10_000}
"""What a connection to PostgreSQL waits for a server that is cut off from us: s, s, ms. Without,
a thread would wait for a quarter of an hour. A URL's own parameters win."""


def open_engine(url: str) -> sa.Engine:
    """Return an engine on `url`. Connections are made when first needed; threads may share it."""
    address = sa.make_url(url)
    if address.drivername == "postgresql":
        given = {k: str(v) for k, v in _ANSWERS_OR_IS_GONE.items() if k not in address.query}
        address = address.set(drivername="postgresql+psycopg").update_query_dict(given)
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


def scrub(engine: sa.Engine) -> bool:
    """Leave no copy of deleted rows behind; say whether it could be done now.

    SQLite writes its file anew, and its log is cut off. PostgreSQL takes the rows' room back and
    their values out of its statistics; its files are overwritten in its own time.
    """
    with engine.connect() as borrowed:
        connection: Any = borrowed.connection.driver_connection
        borrowed.detach()  # closed afterwards, in whatever state
        if engine.dialect.name == "sqlite":
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE)")
    return True


def insert_new(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert those rows whose primary key is not there yet."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))
