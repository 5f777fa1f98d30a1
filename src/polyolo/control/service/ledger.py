"""One transaction, one event, one revision: how every change of the control plane is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.audit import Entry, Signer, cleaned
from polyolo.control.service import chain, touches
from polyolo.types import Principal

SOURCE: ContextVar[str] = ContextVar("source", default="")
"""Address of the client whose call is being answered; empty for what nobody called for."""

Listener = Callable[[int, str | None], None]
"""Called after a commit with the new revision and the tenant concerned (None: the platform)."""


class Transaction:
    """A change in the making. Nothing is counted or told unless it is `note`d or `touch`ed."""

    def __init__(self, connection: sa.Connection, now: float) -> None:
        self.connection = connection
        self.now = now
        """Unix seconds, the same in every row of the change."""
        self.touched: dict[str | None, None] = {}
        self.entries: list[Entry] = []

    def touch(self, tenant: str | None) -> None:
        """Have listeners told that something of `tenant` is different."""
        self.touched[tenant] = None

    def note(
        self, actor: str, action: str, *, tenant: str | None, resource: str, detail: str = ""
    ) -> None:
        """Write the event of this change. detail: for a person to read; never a secret."""
        self.touch(tenant)
        self.record(
            Entry(
                at=self.now,
                kind="change",
                actor=actor,
                action=action,
                tenant=tenant,
                resource=cleaned(resource, 200),
                detail=cleaned(detail, 2000),
                source=SOURCE.get(),
            )
        )

    def record(self, entry: Entry) -> None:
        """Write an entry of the audit log that is no change: nobody is told."""
        self.entries.append(entry)

    def new_generation(self, tenant: str) -> None:
        """Record that the tenant's runtime should be something else from now on."""
        self.connection.execute(
            db.runtimes.update()
            .where(db.runtimes.c.tenant == tenant)
            .values(generation=db.runtimes.c.generation + 1)
        )


class Ledger:
    """The database with its rule of change. Any thread may use it."""

    def __init__(
        self, engine: sa.Engine, signer: Signer, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Keep `engine`; listeners are added before the first change.

        signer: of the audit log. clock: unix seconds.
        """
        self._engine = engine
        self._check: Callable[[sa.Connection], None] | None = None
        self.signer = signer
        self.clock = clock
        self.listeners: list[Listener] = []

    def guarded(self, check: Callable[[sa.Connection], None]) -> Ledger:
        """Return this ledger with a fence: `check` raises where a change may no longer be made."""
        fenced = copy(self)  # with the same listeners
        fenced._check = check  # noqa: SLF001  # one of us
        return fenced

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection on which every query sees the same moment."""
        with db.reading(self._engine) as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Transaction]:
        """Yield a transaction; afterwards it is kept whole and told, or nothing happened."""
        revision = None
        with db.writing(self._engine) as connection:
            if self._check is not None:
                self._check(connection)
            transaction = Transaction(connection, self.clock())
            yield transaction
            if transaction.entries:
                chain.append(connection, self.signer, transaction.entries)
            if transaction.touched:
                counter = db.platform.c.revision
                connection.execute(db.platform.update().values(revision=counter + 1))
                revision = connection.execute(sa.select(counter)).scalar_one()
                touches.write(connection, set(transaction.touched) - {None}, revision)
        if revision is not None:
            for tenant in transaction.touched:
                for listener in self.listeners:
                    listener(revision, tenant)

    def scrub(self) -> bool:
        """Have the database keep no copy of deleted rows, as far as it can; say whether it did."""
        return db.scrub(self._engine)

    def revision(self) -> int:
        """Return the number of the last change."""
        with self.reading() as connection:
            return int(connection.execute(sa.select(db.platform.c.revision)).scalar_one())


def actor(principal: Principal) -> str:
    """Return how an event names who made the change."""
    return principal.kind if principal.kind == principal.id else f"{principal.kind}:{principal.id}"
