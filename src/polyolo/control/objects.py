"""Where model files lie: one interface, a local directory behind it; `bucket` is the other one.

An object is there whole or not at all, whatever happens while it is written, and is never changed
afterwards, only replaced by another whole one or deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from polyolo.drivers.rundir import place
from polyolo.errors import InsufficientStorageError

_PART = ".part"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_READ_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Entry:
    """An object that is there. size: bytes. modified: unix seconds, of the store's own clock."""

    name: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Named bytes. Any thread may use it; several processes may use the same store.

    Names are words of letters, digits, `.`, `_` and `-` with `/` between. Failures of the store
    are OSErrors, InsufficientStorageError when it is full, NotReadyError when it is out of reach.
    """

    def put(self, name: str, pieces: Iterable[bytes], *, replace: bool = True) -> bool:
        """Store an object that survives a power cut; nothing of it when anything raises.

        replace: else an object of that name stays as it is, and the answer is False.
        """
        ...

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object in pieces. Raises FileNotFoundError with the first one."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what is stored below the folder `prefix`, in any order."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        ...

    def place(self, name: str, target: Path) -> None:
        """Have an object's bytes in a local file that is not there yet, never half of them."""
        ...


class DirectoryStore:
    """An ObjectStore in a directory: each object a file, for runtimes on this machine to link."""

    def __init__(self, root: Path) -> None:
        """Use `root`, made when missing; what a killed process was writing goes."""
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in root.glob(f".*{_PART}"):
            _delete_left(part)

    def put(self, name: str, pieces: Iterable[bytes], *, replace: bool = True) -> bool:
        """Store an object (see ObjectStore)."""
        target = self._path(name)
        with full_disk_told(), self._writing() as (file, part):
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o400)  # runtimes get links to this very file: nobody writes to it
            while True:
                self._make(target.parent)
                try:
                    part.replace(target) if replace else target.hardlink_to(part)
                except FileExistsError:
                    return False
                except FileNotFoundError:  # the folder was empty, and was just deleted
                    continue
                break
            _sync(target.parent)
        return True

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object in pieces (see ObjectStore)."""
        with self._path(name).open("rb") as file:
            while piece := file.read(_READ_BYTES):
                yield piece

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what is stored below a folder (see ObjectStore)."""
        for directory, _, names in os.walk(self._path(prefix) if prefix else self._root):
            for name in names:
                if name.startswith("."):
                    continue
                path = Path(directory, name)
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found = path.stat()
                    yield Entry(str(path.relative_to(self._root)), found.st_size, found.st_mtime)

    def delete(self, name: str) -> None:
        """Delete an object, and the folders that it leaves empty."""
        path = self._path(name)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            while (path := path.parent) != self._root:
                path.rmdir()

    def place(self, name: str, target: Path) -> None:
        """Link the object to `target`, or copy it where that cannot be (see ObjectStore)."""
        place(self._path(name), target)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not an object's name: {name!r}")
        return self._root / name

    def _make(self, directory: Path) -> None:
        """Have a folder below the root, its name on the disk."""
        if directory != self._root and not directory.is_dir():
            self._make(directory.parent)
            with suppress(FileNotFoundError):  # the next try makes it
                directory.mkdir(mode=0o700, exist_ok=True)
                _sync(directory.parent)

    @contextmanager
    def _writing(self) -> Iterator[tuple[BinaryIO, Path]]:
        """Yield a hidden file that is gone afterwards, whoever starts meanwhile."""
        descriptor, name = tempfile.mkstemp(_PART, ".", self._root)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells `_delete_left`
                yield file, part
        finally:
            part.unlink(missing_ok=True)


def _delete_left(part: Path) -> None:
    with suppress(BlockingIOError, FileNotFoundError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else another process is writing it
        part.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # else a power cut may take the name and leave the row
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Turn the system's word for a full disk into a sentence for the caller."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorageError(
                "the platform's disk is full and nothing was kept; ask its operator for space"
            ) from None
        raise
