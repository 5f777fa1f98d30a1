"""The home directory: made private, taken by one platform at a time, holding the operator's key."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyolo.control import names


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Make `home` (mode 0700) if need be, and keep other platforms out of it meanwhile.

    The kernel gives it back when this process ends, however it ends. Raises OSError when it
    cannot be used, or another platform runs on it.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"another polyolo runs on {home}; stop it, or choose another --home"
            ) from None
        yield
    finally:
        os.close(descriptor)


def operator_key(home: Path) -> str:
    """Return the operator's key; the first call makes it (`operator.key`, mode 0600).

    Raises OSError when the file cannot be read or does not hold a key.
    """
    file = home / "operator.key"
    if not file.exists():
        descriptor, fresh = tempfile.mkstemp(prefix=".operator.key.", dir=home)  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as writing:
                writing.write(names.operator_key() + "\n")
                writing.flush()
                os.fsync(writing.fileno())
            Path(fresh).rename(file)  # whole or not at all
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
    key = file.read_text(encoding="ascii", errors="replace").strip()
    if not key.startswith("po_") or len(key) < 40:
        raise OSError(f"{file} holds no operator key; delete it to get a new one")
    return key
