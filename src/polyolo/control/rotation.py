"""Puts another master key in force, so that a kill at any moment leaves one that opens everything.

The new key is written beside the old one before the database needs it, and takes its file's place
after; at the next start the database says which of the two it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyolo.control import db, home, secrets
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import FILE, NEXT, VARIABLE, LocalMaster
from polyolo.control.service import vault


def rotate_master(
    directory: Path, database: str, environment: Mapping[str, str] | None = None
) -> int:
    """Wrap every data key by a new master key, and return how many there were.

    directory: the home of a platform that does not run. Raises OSError when it does, and when
    the key is not in its file: whoever sets POLYOLO_MASTER_KEY keeps the key elsewhere.
    """
    given = os.environ if environment is None else environment
    if given.get(VARIABLE):
        raise OSError(
            f"the master key is set by {VARIABLE}, not kept in the home: unset it, put the key "
            f"into {directory / FILE} (mode 0600), rotate, and take the new key from there"
        )
    with home.held(directory):
        engine = db.open_engine(database)
        try:
            migrate(engine)
            old = settled(directory, engine, given)
            secrets.write_key(directory / NEXT, secrets.new_key())
            count = rewrap(engine, old, secrets.read_key(directory / NEXT))
            (directory / NEXT).replace(directory / FILE)
        finally:
            engine.dispose()
    return count


def settled(
    directory: Path, engine: Any, environment: Mapping[str, str] | None = None
) -> LocalMaster:
    """Return the master key, after finishing or forgetting a rotation that was killed."""
    present = secrets.master(directory, environment)
    following = directory / NEXT
    if following.exists():
        fresh = secrets.read_key(following)
        with db.reading(engine) as connection:
            done = fresh.id in vault.masters(connection)
        if done:
            following.replace(directory / FILE)
            return fresh
        following.unlink()
    return present


def rewrap(engine: Any, old: LocalMaster, fresh: LocalMaster) -> int:
    """Wrap every data key by `fresh`, all or none, and return how many there are."""
    with db.writing(engine) as connection:
        return vault.rewrap(connection, old, fresh)
