"""Brings a model's file from the platform's store into the runtime's own directory, in a cluster.

A runtime on the platform's machine finds its files beside its spec; a pod finds their URLs there,
and shows the token that control gave it: it opens its own tenant's files only. They are kept as
they come, sealed. What its tenant keeps in a storage that the pod mounts is read where it lies, in
clear, and looked at before: a version of other bytes fails by itself.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from polyolo import telemetry
from polyolo.errors import ModelRefusedError, NotReadyError
from polyolo.types import MOUNTED, RuntimeSpec, VersionSpec

TOKEN = "POLYOLO_RUNTIME_TOKEN"  # noqa: S105  # a variable's name
"""Environment variable with what control and this runtime know each other by."""
_ANSWER_S = 30.0
"""Between two pieces; a store that is slower is out of reach."""
_PAUSES_S = (0.2, 5.0)  # first and longest one while the store is away
_PIECE = 1 << 20

log = telemetry.logger("fetch")


class Files:
    """The files that a spec names, here or to be fetched. On the event loop."""

    def __init__(
        self, folder: Path | None = None, token: str = "", storage: Path | None = None
    ) -> None:
        """Keep what is fetched in `folder`, made when missing, by the last part of its URL.

        token: what the store knows this runtime by. storage: where the tenant's own is mounted.
        """
        self._folder = folder
        self._token = token
        self._storage = storage

    def path(self, uri: str) -> Path:
        """Return where the file that a spec names is, or will be. Raises NotReadyError."""
        if uri.startswith(MOUNTED):
            if self._storage is None:
                raise ModelRefusedError("its file is in a storage that is not mounted here")
            return self._storage / uri.removeprefix(MOUNTED)
        if not uri.startswith("http://"):
            return Path(uri)
        if self._folder is None:
            raise NotReadyError("its file is to be fetched, but there is no directory for models")
        return self._folder / uri.rpartition("/")[2]

    async def bring(self, version: VersionSpec) -> None:
        """Have all files of a version here, for as long as the store is out of reach.

        Raises NotReadyError saying why one cannot be had, and ModelRefusedError for one in the
        tenant's own storage that is not there, or another one.
        """
        if version.uri.startswith(MOUNTED):
            await asyncio.to_thread(self._look, version)
        for uri in _uris(version):
            target = self.path(uri)
            if uri.startswith("http://") and not target.exists():
                await self._bring(uri, target)

    def keep(self, spec: RuntimeSpec) -> None:
        """Delete what was fetched and is not named any more."""
        if self._folder is None:
            return
        named = {
            uri.rpartition("/")[2]
            for model in spec.models
            for version in model.versions
            for uri in _uris(version)
        }
        with suppress(OSError):  # nothing has been fetched yet
            for file in self._folder.iterdir():
                if file.name not in named and not file.name.startswith("."):
                    file.unlink(missing_ok=True)

    def _look(self, version: VersionSpec) -> None:
        """Raise ModelRefusedError unless a version's file is in the storage, and as large as it is.

        Its bytes are held against their sha256 when they are read.
        """
        path, name = self.path(version.uri), version.uri.removeprefix(MOUNTED)
        assert self._storage is not None  # or there would be no path
        try:
            where, found = path.resolve(strict=True), path.stat()
        except OSError as error:
            raise ModelRefusedError(
                f"{name} cannot be read in your storage ({error.strerror}): put it there, readable "
                "for everybody, and register it again"
            ) from None
        if not (where.is_relative_to(self._storage.resolve()) and stat.S_ISREG(found.st_mode)):
            raise ModelRefusedError(f"{name} is not a file of your storage")
        if found.st_size != version.size:
            raise ModelRefusedError(
                f"{name} has {found.st_size:,} bytes and not the {version.size:,} that were "
                "registered; put the right file there, or register this one"
            )

    async def _bring(self, uri: str, target: Path) -> None:
        pause, longest = _PAUSES_S
        while True:
            try:
                return await asyncio.to_thread(_fetch, uri, target, self._token)
            except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
                log.warning("the store is out of reach", reason=str(error) or type(error).__name__)
            except OSError as error:
                raise NotReadyError(f"its file cannot be fetched: {error}") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)


def _uris(version: VersionSpec) -> Iterator[str]:
    yield version.uri
    yield from version.golden


def _fetch(uri: str, target: Path, token: str) -> None:
    """Fetch one file. Raises ConnectionError and the like when trying again may help."""
    parts = urlsplit(uri)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_S)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        connection.request("GET", parts.path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if answer.status >= 500:
            raise ConnectionError(f"it answers {answer.status}")
        if answer.status != 200:
            raise OSError(f"the platform's store answers {answer.status}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
        if answer.length:
            raise ConnectionError(f"it broke off {answer.length:,} bytes before the end")
        fresh.rename(target)  # whole or not at all
    finally:
        connection.close()
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
