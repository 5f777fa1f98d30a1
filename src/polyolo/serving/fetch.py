"""Brings a model's file from the platform's store into the runtime's own directory, in a cluster.

A runtime on the platform's machine finds its files beside its spec; a pod finds their URLs there,
and shows the token that control gave it: it opens its own tenant's files only. They are kept as
they come, sealed.
"""

from __future__ import annotations

import asyncio
import http.client
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from polyolo import telemetry
from polyolo.errors import NotReadyError
from polyolo.types import RuntimeSpec, VersionSpec

TOKEN = "POLYOLO_RUNTIME_TOKEN"  # noqa: S105  # a variable's name
"""Environment variable with what control and this runtime know each other by."""
_ANSWER_S = 30.0
"""Between two pieces; a store that is slower is out of reach."""
_PAUSES_S = (0.2, 5.0)  # first and longest one while the store is away
_PIECE = 1 << 20

log = telemetry.logger("fetch")


class Files:
    """The files that a spec names, here or to be fetched. On the event loop."""

    def __init__(self, folder: Path | None = None, token: str = "") -> None:
        """Keep what is fetched in `folder`, made when missing, by the last part of its URL.

        token: what the store knows this runtime by.
        """
        self._folder = folder
        self._token = token

    def path(self, uri: str) -> Path:
        """Return where the file that a spec names is, or will be. Raises NotReadyError."""
        if not uri.startswith("http://"):
            return Path(uri)
        if self._folder is None:
            raise NotReadyError("its file is to be fetched, but there is no directory for models")
        return self._folder / uri.rpartition("/")[2]

    async def bring(self, version: VersionSpec) -> None:
        """Have all files of a version here, for as long as the store is out of reach.

        Raises NotReadyError saying why one cannot be had.
        """
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
