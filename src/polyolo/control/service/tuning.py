"""A model's settings: what counts as a detection, and what computes it."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control.service import modelrows
from polyolo.control.service.ledger import Ledger, actor
from polyolo.errors import InvalidValueError
from polyolo.resources import ModelSettings
from polyolo.types import Principal

RELOADING = frozenset({"input_size", "engine", "precision"})
"""Fields that take effect by opening the model anew, beside the one that serves meanwhile."""


def read(row: Any) -> ModelSettings:
    """Return the settings in a model's row."""
    return msgspec.convert(row.settings, ModelSettings)


def get(ledger: Ledger, tenant: str, name: str) -> ModelSettings:
    """Return a model's own settings. Raises NotFoundError, and ForbiddenError for the standard
    model."""
    with ledger.reading() as connection:
        return read(modelrows.own(connection, tenant, name))


def changed(settings: ModelSettings, changes: dict[str, Any]) -> ModelSettings:
    """Return the settings with some of them changed; None puts a field back to its default.

    Raises InvalidValueError naming field and range.
    """
    defaults = msgspec.to_builtins(ModelSettings())
    given = {key: defaults[key] if value is None else value for key, value in changes.items()}
    try:
        return msgspec.convert({**msgspec.to_builtins(settings), **given}, ModelSettings)
    except ValueError as error:
        raise InvalidValueError(str(error)) from None


def change(ledger: Ledger, who: Principal, tenant: str, name: str, changes: dict[str, Any]) -> None:
    """Change some of a model's settings, see `changed`. Raises NotFoundError too."""
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = modelrows.own(connection, tenant, name)
        after = changed(read(row), changes)
        _check_classes(connection, row, after)
        if after != read(row):
            stored = msgspec.to_builtins(after)
            modelrows.update(transaction, row, settings=stored)
            detail = " ".join(f"{key}={stored[key]}" for key in sorted(changes))
            modelrows.changed(transaction, actor(who), "model.settings", tenant, name, detail)


def _check_classes(connection: sa.Connection, row: Any, after: ModelSettings) -> None:
    names = modelrows.version(connection, row.tenant, row.name, row.current).classes
    for wanted in after.classes or ():
        known = wanted in names if isinstance(wanted, str) else 0 <= wanted < len(names)
        if names and not known:
            raise InvalidValueError(
                f"classes: {wanted!r} is neither a name nor an id (0 to {len(names) - 1}) of a "
                f"class of {row.name}:{row.current}"
            )
