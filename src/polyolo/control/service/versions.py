"""Which version of a model answers: put in use, rolled back, taken out, deleted.

`history` in a model's row holds the versions that were in use before, oldest first. Going back
takes the last good one of them; doing it again changes nothing until another one was put in use,
so that a call which is repeated, or a person and the platform together, go back one step only.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service import modelrows, rollouts
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import ConflictError, NotReadyError
from polyolo.types import Principal

_MOST_HISTORY = 100
"""Versions that a model remembers to have used."""
PLATFORM = "platform"
"""Actor of what the platform does by itself."""


def use(
    ledger: Ledger,
    by: str,
    tenant: str,
    name: str,
    number: int,
    *,
    instead_of: int | None = None,
    detail: str = "",
    force: bool = False,
) -> bool:
    """Make a version the one in use; False when it is. by: the event's actor.

    instead_of: the version that it was compared with; NotReadyError when another one is in use by
    now. detail: what the comparison showed. force: even one that was taken out. Raises
    NotFoundError, ConflictError.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = modelrows.own(connection, tenant, name)
        version = modelrows.version(connection, tenant, name, number)
        if row.current == number:
            return False
        if instead_of is not None and row.current != instead_of:
            raise NotReadyError(f"{name}:{row.current} was put in use meanwhile; try again")
        if version.taken_out:
            if not force:
                raise taken_out_error(name, number, version.taken_out)
            _mark(transaction, tenant, name, number, "")
        outcome = ("promoted", "") if _on_trial(row, number) else ("aborted", _REPLACED)
        modelrows.update(
            transaction,
            row,
            current=number,
            history=[*row.history, row.current][-_MOST_HISTORY:],
            rolled_back=None,
            rollout=rollouts.ended(row, transaction.now, *outcome),
        )
        modelrows.changed(transaction, by, "model.use", tenant, f"{name}:{number}", detail)
    return True


_REPLACED = "another version was put in use"


def rollback(ledger: Ledger, who: Principal, tenant: str, name: str) -> None:
    """Go back to the last good version; does nothing when that was done already.

    Raises NotFoundError, ConflictError.
    """
    with ledger.changing() as transaction:
        row = modelrows.own(transaction.connection, tenant, name)
        if row.rolled_back is None and not _go_back(transaction, row, actor(who), ""):
            raise ConflictError(f"no good version of {name} was in use before {name}:{row.current}")


def take_out(
    ledger: Ledger, tenant: str, name: str, number: int, reason: str, generation: int
) -> None:
    """Take a version out of use that turned out bad, if there is one to go back to.

    generation: of the spec under which that was seen; what was changed since has to be seen first.
    """
    with ledger.changing() as transaction:
        row = transaction.connection.execute(
            sa.select(db.models, db.runtimes.c.generation)
            .join_from(db.models, db.runtimes, db.models.c.tenant == db.runtimes.c.tenant)
            .where(modelrows.is_model(tenant, name))
        ).one_or_none()
        if row is None or row.current != number or row.generation > generation:
            return
        if _go_back(transaction, row, PLATFORM, reason):
            _mark(transaction, tenant, name, number, reason)


def delete(ledger: Ledger, who: Principal, tenant: str, name: str, number: int) -> None:
    """Delete a version; its number is not given again. Raises NotFoundError, ConflictError."""
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = modelrows.own(connection, tenant, name)
        modelrows.version(connection, tenant, name, number)
        if row.current == number:
            raise ConflictError(
                f"{name}:{number} is in use; put another version in use first, or delete the model"
            )
        if _on_trial(row, number):
            raise ConflictError(f"{name}:{number} is on trial; abort its rollout first")
        connection.execute(db.versions.delete().where(modelrows.is_version(tenant, name, number)))
        modelrows.update(transaction, row, history=[one for one in row.history if one != number])
        modelrows.changed(transaction, actor(who), "model.delete", tenant, f"{name}:{number}")


def fallback(row: Any, taken_out: set[int]) -> int:
    """Return the version to go back to from the one in use; 0 for none. taken_out: bad ones."""
    good = (one for one in reversed(row.history) if one not in taken_out and one != row.current)
    return next(good, 0)


def taken_out_error(name: str, number: int, reason: str) -> ConflictError:
    """Return the error for a version that was taken out of use and is asked for again."""
    return ConflictError(
        f"{name}:{number} was taken out of use: {reason}; force it if you know better"
    )


def _go_back(transaction: Transaction, row: Any, by: str, reason: str) -> bool:
    bad = transaction.connection.execute(
        sa.select(db.versions.c.version).where(
            db.versions.c.tenant == row.tenant,
            db.versions.c.model == row.name,
            db.versions.c.taken_out != "",
        )
    ).scalars()
    number = fallback(row, set(bad))
    if not number:
        return False
    modelrows.update(
        transaction,
        row,
        current=number,
        history=row.history[: len(row.history) - 1 - row.history[::-1].index(number)],
        rolled_back=row.current,
        rollout=rollouts.ended(row, transaction.now, "aborted", f"{row.name} was rolled back"),
    )
    detail = f"from {row.current}: {reason}" if reason else f"from {row.current}"
    modelrows.changed(transaction, by, "model.rollback", row.tenant, f"{row.name}:{number}", detail)
    return True


def _on_trial(row: Any, number: int) -> bool:
    record = rollouts.running(row)
    return record is not None and record.version == number


def _mark(transaction: Transaction, tenant: str, name: str, number: int, reason: str) -> None:
    transaction.connection.execute(
        db.versions.update()
        .where(modelrows.is_version(tenant, name, number))
        .values(taken_out=reason[:1000])
    )
