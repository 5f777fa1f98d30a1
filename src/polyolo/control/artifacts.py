"""The store of model files, each under the sha256 of its bytes: never half a file, never twice.

Control planes that share a database share its directory; locks in the file system keep one from
deleting what another is just putting there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyolo.errors import InsufficientStorageError, TooLargeError

_PART = ".part"
_LOCK = ".lock"
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
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # in use, says who else starts
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
        """Use `directory`, made when missing; uploads that a killed platform left go."""
        self._directory = directory
        self._lock = threading.Lock()
        self._kept: Counter[str] = Counter()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in directory.glob(f".*{_PART}"):
            _delete_left(entry)

    def path(self, digest: str) -> Path:
        """Return where the file with this digest is."""
        return self._directory / digest

    def digests(self) -> set[str]:
        """Return what is in the store."""
        return {entry.name for entry in self._directory.iterdir() if not entry.name.startswith(".")}

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
            with _claimed(self._directory / _LOCK, digest, fcntl.F_RDLCK):
                upload.path.chmod(
                    0o400
                )  # runtimes get links to this very file: nobody writes to it
                upload.path.replace(self.path(digest))
                self._sync_directory()
                yield
        finally:
            with self._lock:
                self._kept -= Counter([digest])  # drops the entry at zero

    def discard(self, digest: str, *, if_so: Callable[[], bool]) -> None:
        """Delete a file unless it is being placed right now, or `if_so` says no."""
        with self._lock:
            if self._kept[digest]:
                return
            with (
                suppress(BlockingIOError),  # another control plane is placing it
                _claimed(self._directory / _LOCK, digest, fcntl.F_WRLCK),
            ):
                if if_so():
                    self.path(digest).unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # else a power cut may take the name and leave the row
        finally:
            os.close(descriptor)


@contextmanager
def _claimed(lock: Path, digest: str, how: int) -> Iterator[None]:
    """Hold a digest's byte of the lock file; raise BlockingIOError when a writer must wait.

    Of the open file (F_OFD_SETLK), so that threads of one process exclude each other too.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        command = fcntl.F_OFD_SETLK if how == fcntl.F_WRLCK else fcntl.F_OFD_SETLKW
        place = int(digest[:15], 16)  # off_t has 63 bits
        # struct flock: type, whence, start, length, pid, which has to be 0
        fcntl.fcntl(descriptor, command, struct.pack("hhqqi4x", how, os.SEEK_SET, place, 1, 0))
        yield
    finally:
        os.close(descriptor)


def _delete_left(part: Path) -> None:
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
    except (BlockingIOError, FileNotFoundError):
        return  # another control plane is receiving it, or was faster


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
