"""The model files of tenants in the object store, each sealed by its tenant's own key.

`<tenant>/<sha256 of the plain bytes>` is a model file, `<tenant>/uploads/<upload>/<offset>` a
piece of one that is still coming in. Nothing is shared between tenants, so deleting one's file
never touches another's; without a tenant's key, which its data key gives, they are noise. The
platform's own model lies open at `platform/<sha256>`: every tenant's runtime reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from polyolo import sealedfile, telemetry
from polyolo.control.objects import ObjectStore
from polyolo.errors import PolyoloError

PLATFORM = ""
"""Stands for the platform in the place of a tenant's id."""
PLATFORM_FOLDER = "platform"
"""What its folder is called; no tenant's id: those begin with t_."""
SCHEME = "object:"
"""What a VersionSpec's uri begins with where its file is to be fetched from the store."""

_OFFSET = 12  # digits: a terabyte
_UNREADABLE = "a tenant's own file cannot be read"


class Artifacts:
    """Model files by tenant and sha256. Any thread may use it.

    What reads raises FileNotFoundError for what is not there, SealedFileError for what was changed
    or whose key is gone; what writes, InsufficientStorageError; all of them NotReadyError when the
    store is out of reach.
    """

    def __init__(
        self,
        objects: ObjectStore,
        key_of: Callable[[str], bytes],
        elsewhere: Callable[[str, str], Iterator[bytes]] | None = None,
    ) -> None:
        """Use a store. key_of: a tenant's key for files (see sealedfile.artifact_key).

        elsewhere: reads a file, by tenant and sha256, that its tenant keeps itself; it raises
        FileNotFoundError for others.
        """
        self._objects = objects
        self._key_of = key_of
        self._elsewhere = elsewhere
        self._log = telemetry.logger("artifacts")

    def keep(self, tenant: str, digest: str, pieces: Iterable[bytes]) -> None:
        """Store a model file. pieces: its plain bytes, of that sha256."""
        if tenant != PLATFORM:
            pieces = sealedfile.seal(self._key_of(tenant), digest, pieces)
        self._objects.put(_name(tenant, digest), pieces)

    def read(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield a model file's plain bytes, in pieces.

        Of one that its tenant keeps itself, whatever is there now.
        """
        pieces = self._objects.get(_name(tenant, digest))
        if tenant == PLATFORM:
            yield from pieces
            return
        key = self._key_of(tenant)
        try:
            yield from sealedfile.unseal(key, digest, pieces)
        except FileNotFoundError:
            if self._elsewhere is None:
                raise
            yield from self._elsewhere(tenant, digest)

    def has(self, tenant: str, digest: str) -> bool:
        """Say whether a model file is stored."""
        name = _name(tenant, digest)
        return any(entry.name == name for entry in self._objects.entries(_folder(tenant)))

    def delete(self, tenant: str, digest: str) -> None:
        """Delete a model file, if it is there."""
        self._objects.delete(_name(tenant, digest))

    def delete_all(self, tenant: str) -> None:
        """Delete everything of a tenant's."""
        for entry in list(self._objects.entries(_folder(tenant))):
            self._objects.delete(entry.name)

    def uri(self, tenant: str, digest: str) -> str:
        """Return what a runtime's spec says of where a file is; see `put`."""
        return f"{SCHEME}{_name(tenant, digest)}"

    def put(self, uri: str, target: Path) -> None:
        """Put the file that a spec names in a runtime's directory, sealed as it is.

        One that its tenant keeps itself is sealed on the way. What cannot be had there is left
        out, so that the other versions of the tenant go on: the runtime says that it is missing.
        """
        name = uri.removeprefix(SCHEME)
        try:
            self._objects.place(name, target)
        except FileNotFoundError:
            tenant, _, digest = name.partition("/")
            if self._elsewhere is None or tenant == PLATFORM_FOLDER:
                raise
            self._fetch(tenant, digest, target)

    def handed_out(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield a model file as its runtime gets it from afar: sealed, the platform's own open.

        One that its tenant keeps itself is sealed on the way, whatever is there now: the runtime
        refuses another one. What cannot be had there raises FileNotFoundError.
        """
        try:
            yield from self._objects.get(_name(tenant, digest))
        except FileNotFoundError:
            if self._elsewhere is None or tenant == PLATFORM:
                raise
            try:
                plain = self._elsewhere(tenant, digest)
                first = next(plain, b"")  # before anything is said of it
            except (OSError, PolyoloError) as error:
                self._log.warning(_UNREADABLE, tenant=tenant, error=str(error))
                raise FileNotFoundError(f"nobody has {digest}") from None
            yield from sealedfile.seal(self._key_of(tenant), digest, chain([first], plain))

    def _fetch(self, tenant: str, digest: str, target: Path) -> None:
        assert self._elsewhere is not None
        fresh, sha256 = target.with_suffix(".part"), hashlib.sha256()

        def seen(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                sha256.update(piece)
                yield piece

        try:
            with fresh.open("wb") as file:
                pieces = seen(self._elsewhere(tenant, digest))
                for piece in sealedfile.seal(self._key_of(tenant), digest, pieces):
                    file.write(piece)
            if sha256.hexdigest() == digest:
                fresh.rename(target)
            else:  # an empty file is refused like any other that is not the one; see rundir
                target.write_bytes(b"")
                self._log.warning("a tenant's own file was changed", tenant=tenant, digest=digest)
        except (OSError, PolyoloError) as error:
            self._log.warning(_UNREADABLE, tenant=tenant, error=str(error))
        finally:
            fresh.unlink(missing_ok=True)

    def add(self, tenant: str, upload: str, offset: int, data: bytes) -> bool:
        """Store a piece of an upload; False when another one at this offset was faster."""
        name = _piece(tenant, upload, offset)
        sealed = sealedfile.seal(self._key_of(tenant), name, [data])
        return self._objects.put(name, sealed, replace=False)

    def received(self, tenant: str, upload: str) -> int:
        """Return how many bytes of an upload are there, from its beginning without a gap."""
        return sum(size for _, size in self._pieces(tenant, upload))

    def pieces(self, tenant: str, upload: str) -> Iterator[bytes]:
        """Yield the bytes of an upload."""
        key = self._key_of(tenant)
        for name, _ in self._pieces(tenant, upload):
            yield from sealedfile.unseal(key, name, self._objects.get(name))

    def drop(self, tenant: str, upload: str, offset: int | None = None) -> None:
        """Delete what there is of an upload; offset: only the piece that begins there."""
        if offset is not None:
            self._objects.delete(_piece(tenant, upload, offset))
            return
        for entry in list(self._objects.entries(f"{_folder(tenant)}/uploads/{upload}")):
            self._objects.delete(entry.name)

    def _pieces(self, tenant: str, upload: str) -> list[tuple[str, int]]:
        found = sorted(
            (entry.name, sealedfile.plain_size(entry.size))
            for entry in self._objects.entries(f"{_folder(tenant)}/uploads/{upload}")
        )
        joined, end = [], 0
        for name, size in found:
            if name != _piece(tenant, upload, end):
                break  # behind a gap: nobody was told that it had arrived
            joined.append((name, size))
            end += size
        return joined

    def everything(self) -> Iterator[tuple[str, str, str, float]]:
        """Yield (name, tenant, digest or id of the upload, unix seconds) of all that is stored."""
        for entry in self._objects.entries():
            folder, *rest = entry.name.split("/")
            if not rest:
                continue  # of an older release, see `adoption`
            tenant = PLATFORM if folder == PLATFORM_FOLDER else folder
            what = rest[1] if rest[0] == "uploads" and len(rest) > 1 else rest[0]
            yield entry.name, tenant, what, entry.modified

    def discard(self, name: str) -> None:
        """Delete what `everything` named."""
        self._objects.delete(name)


def _folder(tenant: str) -> str:
    return tenant or PLATFORM_FOLDER


def _name(tenant: str, digest: str) -> str:
    return f"{_folder(tenant)}/{digest}"


def _piece(tenant: str, upload: str, offset: int) -> str:
    return f"{_folder(tenant)}/uploads/{upload}/{offset:0{_OFFSET}}"
