"""A tenant's own storage: where it keeps its model files itself, and the platform only reads them.

The platform keeps a file's name and sha256. Its bytes pass through memory when the file is
registered, and into the directory of the tenant's runtime, sealed by the tenant's key, when that
is told to serve it; there they are for as long as the runtime is. Runtimes have no network and
see no directory but their own, so that somebody has to fetch the file for them.

On Kubernetes a storage may be a volume that the runtime's pods mount: then the platform never sees
the bytes, and the runtime is the first one to look into them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.errors import InvalidValueError

_READ_BYTES = 1 << 20
_MOUNTED = ("pvc://", "image://")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""A name as Kubernetes has it (RFC 1123)."""
_HOST = r"[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_WORD = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?=[^@]{{1,255}}(@|$))({_HOST}(\.{_HOST})*(:[0-9]{{1,5}})?/)?{_WORD}(/{_WORD})*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
"""An image's reference, in the grammar of OCI registries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStorage:
    """A directory, or a bucket with the tenant's own credentials."""

    uri: str
    """`file:///directory` or `s3://bucket/prefix`; on Kubernetes also `pvc://CLAIM`, of a claim in
    the tenant's namespace, or `image://REFERENCE`, of an image that holds the files."""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)

    @property
    def mounted(self) -> bool:
        """Whether the tenant's runtime mounts it, and nobody else reads it."""
        return self.uri.startswith(_MOUNTED)


def checked(storage: OwnStorage, cluster: ClusterSettings | None = None) -> OwnStorage:
    """Return a storage that can be one; raise InvalidValueError. cluster: where runtimes live."""
    if storage.mounted:
        _check_volume(storage, cluster)
    elif storage.uri.startswith("file:///"):
        directory = _directory(storage)
        if not directory.is_dir():
            raise InvalidValueError(f"uri: {directory} is not a directory of the control plane's")
    elif not storage.uri.startswith("s3://") or len(storage.uri) < 6:
        raise InvalidValueError(
            "uri: write file:///directory, s3://bucket/prefix, pvc://CLAIM or image://REFERENCE"
        )
    elif not storage.access_key_id or not storage.secret_access_key:
        raise InvalidValueError("a bucket is read with access_key_id and secret_access_key")
    return storage


def _check_volume(storage: OwnStorage, cluster: ClusterSettings | None) -> None:
    scheme, _, name = storage.uri.partition("://")
    if cluster is None:
        raise InvalidValueError(
            f"uri: {scheme}:// is mounted by pods, and this platform's runtimes are processes; "
            "grant a directory or a bucket"
        )
    if any((storage.endpoint, storage.region, storage.access_key_id, storage.secret_access_key)):
        raise InvalidValueError("what is mounted has no endpoint, region or key")
    if scheme == "pvc" and (len(name) > 253 or not _CLAIM.fullmatch(name)):
        raise InvalidValueError(
            "uri: name the claim as Kubernetes does, in small letters, digits, hyphens and dots: "
            "pvc://models"
        )
    if scheme == "image" and not cluster.image_volumes:
        raise InvalidValueError(
            "uri: image:// needs a cluster that mounts images as volumes, as Kubernetes does since "
            "1.35; say so in its settings: image_volumes"
        )
    if scheme == "image" and not _IMAGE.fullmatch(name):
        raise InvalidValueError(
            "uri: name an image with its tag or digest: image://registry.example/acme/models:3"
        )


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
    if storage.mounted:
        raise FileNotFoundError(f"only the tenant's own runtime can read {path}")
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
