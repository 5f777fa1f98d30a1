"""Brings a model's file from the platform's store into the runtime's own directory, in a cluster.

A runtime on the platform's machine finds its files beside its spec; a pod finds their URLs there,
and shows the token that control gave it: it opens its own tenant's files only.
"""

from __future__ import annotations

import asyncio
import http.client
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from polyolo.errors import NotReadyError

TOKEN = "POLYOLO_RUNTIME_TOKEN"  # noqa: S105  # a variable's name
"""Environment variable with what control and this runtime know each other by."""
_ANSWER_S = 30.0
"""Between two pieces; a store that is slower is out of reach."""
_PIECE = 1 << 20


async def located(uri: str, here: Path, folder: Path | None, token: str) -> Path:
    """Return the path of the file that a spec names, fetched if it is a URL and not there yet.

    here: directory that relative paths are of. folder: where fetched files are kept, by the last
    part of their URL. Raises NotReadyError saying why it cannot be had.
    """
    if not uri.startswith("http://"):
        return here / uri
    if folder is None:
        raise NotReadyError("its file is to be fetched, but there is no directory for models")
    target = folder / uri.rpartition("/")[2]
    if not target.exists():
        try:
            await asyncio.to_thread(_fetch, uri, target, token)
        except OSError as error:
            raise NotReadyError(f"its file cannot be fetched: {error}") from None
        except http.client.HTTPException as error:
            raise NotReadyError(f"its file cannot be fetched: {type(error).__name__}") from None
    return target


def _fetch(uri: str, target: Path, token: str) -> None:
    parts = urlsplit(uri)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_S)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        connection.request("GET", parts.path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"the platform's store answers {answer.status}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
        if answer.length:
            raise OSError(f"it broke off {answer.length:,} bytes before its end")
        fresh.rename(target)  # whole or not at all
    finally:
        connection.close()
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
