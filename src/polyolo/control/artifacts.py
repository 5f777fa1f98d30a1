"""The store of model files, each under the sha256 of its bytes: never half a file, never twice."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyolo.errors import InsufficientStorageError, TooLargeError

_PART = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Upload:
    """A file on its way into the store. Not for two threads at once."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Open a hidden file in `directory` for at most `limit` bytes."""
        with _full_disk_told():
            descriptor, name = tempfile.mkstemp(_PART, ".", directory)
        self.path = Path(name)
        self.size = 0
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._limit = limit

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises TooLargeError, or InsufficientStorageError when the disk is full."""
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLargeError(f"the file is larger than the {self._limit:,} bytes of the plan")
        self._sha256.update(chunk)
        with _full_disk_told():
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> str:
        """Have the bytes reach the disk, and return their sha256."""
        with _full_disk_told():
            os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()

    def abandon(self) -> None:
        """Delete what is there of the file, unless it was placed in the store."""
        self._file.close()
        with suppress(OSError):
            self.path.unlink()


class ArtifactStore:
    """A directory of immutable files, named by digest. Any thread may use it."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`, made when missing; unfinished uploads of a killed platform go."""
        self._directory = directory
        self._lock = threading.Lock()
        self._kept: Counter[str] = Counter()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in directory.glob(f".*{_PART}"):
            entry.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the file with this digest is."""
        return self._directory / digest

    def digests(self) -> set[str]:
        """Return what is in the store."""
        return {entry.name for entry in self._directory.iterdir() if entry.suffix != _PART}

    @contextmanager
    def upload(self, limit: int) -> Iterator[Upload]:
        """Yield a new file of at most `limit` bytes; gone afterwards, unless placed."""
        upload = Upload(self._directory, limit)
        try:
            yield upload
        finally:
            upload.abandon()

    @contextmanager
    def placing(self, upload: Upload, digest: str) -> Iterator[None]:
        """Put a finished upload in the store, and keep it there while the block runs.

        Within the block the caller records that the file is needed; otherwise it may go.
        """
        with self._lock:
            self._kept[digest] += 1
        try:
            upload.path.chmod(0o400)  # runtimes get links to this very file: nobody writes to it
            upload.path.replace(self.path(digest))
            self._sync_directory()
            yield
        finally:
            with self._lock:
                self._kept -= Counter([digest])  # drops the entry at zero

    def discard(self, digest: str, *, if_so: Callable[[], bool]) -> None:
        """Delete a file unless it is being placed right now, or `if_so` says no."""
        with self._lock:
            if not self._kept[digest] and if_so():
                self.path(digest).unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # else a power cut may take the name and leave the row
        finally:
            os.close(descriptor)


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorageError(
                "the platform's disk is full and nothing was kept; ask its operator for space"
            ) from None
        raise
