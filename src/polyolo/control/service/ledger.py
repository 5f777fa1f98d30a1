"""One transaction, one event, one revision: how every change of the control plane is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from polyolo.control import db
from polyolo.types import Principal

Listener = Callable[[int, str | None], None]
"""Called after a commit with the new revision and the tenant concerned (None: the platform)."""


class Transaction:
    """A change in the making. Nothing is counted or told unless it is `note`d or `touch`ed."""

    def __init__(self, connection: sa.Connection, now: float) -> None:
        self.connection = connection
        self.now = now
        """Unix seconds, the same in every row of the change."""
        self.touched: dict[str | None, None] = {}

    def touch(self, tenant: str | None) -> None:
        """Have listeners told that something of `tenant` is different."""
        self.touched[tenant] = None

    def note(
        self, actor: str, action: str, *, tenant: str | None, resource: str, detail: str = ""
    ) -> None:
        """Write the event of this change. detail: for a person to read; never a secret."""
        self.touch(tenant)
        self.connection.execute(
            db.events.insert().values(
                at=self.now,
                actor=actor,
                action=action,
                tenant=tenant,
                resource=resource,
                detail=detail,
            )
        )

    def new_generation(self, tenant: str) -> None:
        """Record that the tenant's runtime should be something else from now on."""
        self.connection.execute(
            db.runtimes.update()
            .where(db.runtimes.c.tenant == tenant)
            .values(generation=db.runtimes.c.generation + 1)
        )


class Ledger:
    """The database with its rule of change. Any thread may use it."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        """Keep `engine`; listeners are added before the first change. clock: unix seconds."""
        self._engine = engine
        self.clock = clock
        self.listeners: list[Listener] = []

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
            transaction = Transaction(connection, self.clock())
            yield transaction
            if transaction.touched:
                counter = db.platform.c.revision
                connection.execute(db.platform.update().values(revision=counter + 1))
                revision = connection.execute(sa.select(counter)).scalar_one()
        if revision is not None:
            for tenant in transaction.touched:
                for listener in self.listeners:
                    listener(revision, tenant)

    def revision(self) -> int:
        """Return the number of the last change."""
        with self.reading() as connection:
            return int(connection.execute(sa.select(db.platform.c.revision)).scalar_one())


def actor(principal: Principal) -> str:
    """Return how an event names who made the change."""
    return principal.kind if principal.kind == principal.id else f"{principal.kind}:{principal.id}"
