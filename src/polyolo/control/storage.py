"""A tenant's own storage: where it keeps its model files itself, and the platform only reads them.

The platform keeps a file's name and sha256. Its bytes pass through memory when the file is
registered, and into the directory of the tenant's runtime, sealed by the tenant's key, when that
is told to serve it; there they are for as long as the runtime is. Runtimes have no network and
see no directory but their own, so that somebody has to fetch the file for them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from polyolo.errors import InvalidValueError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStorage:
    """A directory, or a bucket with the tenant's own credentials."""

    uri: str
    """`file:///directory` or `s3://bucket/prefix`."""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)


def checked(storage: OwnStorage) -> OwnStorage:
    """Return a storage that can be one; raise InvalidValueError."""
    if storage.uri.startswith("file:///"):
        directory = _directory(storage)
        if not directory.is_dir():
            raise InvalidValueError(f"uri: {directory} is not a directory of the control plane's")
    elif not storage.uri.startswith("s3://") or len(storage.uri) < 6:
        raise InvalidValueError("uri: write file:///directory or s3://bucket/prefix")
    elif not storage.access_key_id or not storage.secret_access_key:
        raise InvalidValueError("a bucket is read with access_key_id and secret_access_key")
    return storage


def checked_path(path: str) -> str:
    """Return a file's path within a storage; raise InvalidValueError for one that leads out."""
    parts = PurePosixPath(path).parts
    if not path or path.startswith("/") or ".." in parts or "\0" in path or len(path) > 500:
        raise InvalidValueError("uri: it must be a file's path below the storage, as city/v3.onnx")
    return path


def opened(storage: OwnStorage, path: str) -> Iterator[bytes]:
    """Yield a file of a storage in pieces.

    Raises FileNotFoundError for what is not there or lies elsewhere, OSError and NotReadyError.
    """
    checked_path(path)
    if storage.uri.startswith("file:"):
        yield from _of_directory(_directory(storage), path)
        return
    from polyolo.control.bucket import Access, Bucket

    access = Access(
        endpoint=storage.endpoint,
        region=storage.region or "us-east-1",
        access_key_id=storage.access_key_id,
        secret_access_key=storage.secret_access_key,
    )
    yield from Bucket(storage.uri, access).get(path)


def _of_directory(directory: Path, path: str) -> Iterator[bytes]:
    # Its owner may put links anywhere in it: what counts is which file was opened.
    descriptor = os.open(directory / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        where = Path(f"/proc/self/fd/{descriptor}").resolve()
        plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not plain or not where.is_relative_to(directory.resolve()):
            raise FileNotFoundError(f"{path} is not a file of this storage")
        while piece := file.read(_READ_BYTES):
            yield piece


def _directory(storage: OwnStorage) -> Path:
    return Path(storage.uri.removeprefix("file://"))
