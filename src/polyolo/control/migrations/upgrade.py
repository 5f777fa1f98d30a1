"""Brings the database's schema to the version that this release needs."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from polyolo.control import db


def migrate(engine: sa.Engine) -> None:
    """Upgrade the schema, in one transaction; does nothing when it is up to date.

    Raises RuntimeError when the database was written by a newer release.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with db.writing(engine) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise RuntimeError(
                "the database belongs to a newer release of polyolo; "
                f"start that release, or restore an older backup ({error})"
            ) from None
