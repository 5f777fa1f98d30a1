"""Brings the database's schema to the version that this release needs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from polyolo.control import db


class _UndoneError(Exception):
    """The end of a trial."""


def migrate(engine: sa.Engine, *, keep: bool = True) -> None:
    """Upgrade the schema, in one transaction; does nothing when it is up to date.

    keep: False to see only that it can be done. Raises RuntimeError when the database was written
    by a newer release.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with suppress(_UndoneError), db.writing(engine) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise RuntimeError(
                "the database belongs to a newer release of polyolo; "
                f"start that release, or restore an older backup ({error})"
            ) from None
        if not keep:
            raise _UndoneError
