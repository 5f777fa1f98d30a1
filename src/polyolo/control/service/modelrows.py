"""The rows of a tenant's models, for those that change them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service.ledger import Transaction
from polyolo.errors import ForbiddenError, NotFoundError
from polyolo.types import STANDARD


def own(connection: sa.Connection, tenant: str, name: str) -> Any:
    """Return the row of a model that its tenant may change.

    Raises NotFoundError, and ForbiddenError for the standard model.
    """
    if name == STANDARD:
        raise ForbiddenError(
            "the standard model is the platform's and cannot be changed; push one of your own"
        )
    row = connection.execute(sa.select(db.models).where(is_model(tenant, name))).one_or_none()
    if row is None:
        raise missing(name)
    return row


def version(connection: sa.Connection, tenant: str, name: str, number: int) -> Any:
    """Return the row of a version, with what is known of its file. Raises NotFoundError."""
    rows = connection.execute(versions().where(is_version(tenant, name, number)))
    row = rows.one_or_none()
    if row is None:
        raise missing(name, number)
    return row


def versions() -> sa.Select[Any]:
    """Return the query for versions with what is known of their files."""
    artifacts = db.artifacts.c
    seen = (artifacts.size, artifacts.family, artifacts.input)
    more = (artifacts.licence, artifacts.producer, artifacts.opset, artifacts.uri)
    return sa.select(db.versions, *seen, *more).join_from(db.versions, db.artifacts)


def update(transaction: Transaction, row: Any, **values: Any) -> None:
    """Change a model's row."""
    transaction.connection.execute(
        db.models.update().where(is_model(row.tenant, row.name)).values(**values)
    )


def changed(
    transaction: Transaction, by: str, action: str, tenant: str, what: str, detail: str = ""
) -> None:
    """Have the runtime take a change up, and note it. by: the event's actor."""
    transaction.new_generation(tenant)
    transaction.note(by, action, tenant=tenant, resource=f"models/{what}", detail=detail)


def is_model(tenant: str, name: str) -> sa.ColumnElement[bool]:
    """Return the condition for a model's row."""
    return (db.models.c.tenant == tenant) & (db.models.c.name == name)


def is_version(tenant: str, name: str, number: int) -> sa.ColumnElement[bool]:
    """Return the condition for a version's row."""
    of_model = (db.versions.c.tenant == tenant) & (db.versions.c.model == name)
    return of_model & (db.versions.c.version == number)


def missing(name: str, number: int | None = None) -> NotFoundError:
    """Return the error for a model, or a version, that is not there."""
    what = f"model {name!r}" if number is None else f"version {number} of model {name!r}"
    return NotFoundError(f"there is no {what}; list the models to see what there is")
