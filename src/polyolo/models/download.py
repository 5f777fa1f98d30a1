"""Fetch a published model: resumable, and checked before the file gets its name.

What arrives is written to `NAME.part` beside the target. Only a file of the right size and
sha256 is renamed, so a file of the target's name is always whole.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from polyolo.errors import ConflictError, NotReadyError, PolyoloError
from polyolo.models.catalogue import Published

Progress = Callable[[int, int], None]
"""Told of (bytes here, bytes in all)."""


def fetch(model: Published, target: Path, progress: Progress = lambda _here, _total: None) -> None:
    """Download a model to `target`, going on where an earlier try broke off.

    Does nothing when the file is there already. Raises ConflictError when another file has its
    name, NotReadyError when the connection fails (what arrived is kept for the next try), and
    PolyoloError when what arrived is not the published file. Blocks; OSError for a full disk.
    """
    if _already_there(model, target):
        return
    part = _part(target)
    try:
        _receive(model, part, progress)
    except httpx.HTTPStatusError as error:
        raise NotReadyError(
            f"{model.url} answered {error.response.status_code}; fetch the file by other means "
            f"and run `polyolo models pull {model.name} --from FILE`"
        ) from error
    except httpx.HTTPError as error:
        have = part.stat().st_size if part.exists() else 0
        raise NotReadyError(
            f"the download broke off at {have:,} of {model.size:,} bytes ({_reason(error)}); run "
            "the command again to go on, or, without a network, "
            f"`polyolo models pull {model.name} --from FILE`"
        ) from error
    _put_in_place(model, part, target, model.url)


def adopt(model: Published, source: Path, target: Path) -> None:
    """Copy a file that came by other means to `target`, with the checks of a download.

    Raises PolyoloError when it is not the published file, ConflictError like `fetch`.
    """
    if _already_there(model, target):
        return
    size = source.stat().st_size
    if size != model.size:  # seen before a huge file fills the disk
        raise _not_it(model, str(source), f"has {size:,} bytes")
    part = _part(target)
    shutil.copyfile(source, part)
    _put_in_place(model, part, target, str(source))


def _receive(model: Published, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= model.size:  # complete (the checks come), or more than there is: never resumable
        if have == model.size:
            return
        part.unlink()
        have = 0
    headers = {"accept-encoding": "identity"}  # the size counts bytes as published
    if have:
        headers["range"] = f"bytes={have}-"
    with (
        httpx.Client(follow_redirects=True, timeout=30) as http,
        http.stream("GET", model.url, headers=headers) as response,
    ):
        response.raise_for_status()
        resumed = response.headers.get("content-range", "").startswith(f"bytes {have}-")
        have = have if response.status_code == httpx.codes.PARTIAL_CONTENT and resumed else 0
        with part.open("ab") as file:
            file.truncate(have)
            for chunk in response.iter_bytes():
                file.write(chunk)
                have += len(chunk)
                progress(have, model.size)
                if have > model.size:
                    break  # not our file: the checks will say so


def _put_in_place(model: Published, part: Path, target: Path, source: str) -> None:
    size = part.stat().st_size
    if size != model.size or _sha256(part) != model.sha256:
        found = f"has {size:,} bytes" if size != model.size else "has other contents"
        part.unlink()
        raise _not_it(model, source, found)
    part.replace(target)


def _not_it(model: Published, source: str, found: str) -> PolyoloError:
    return PolyoloError(
        f"{source} is not {model.name} as published: it {found}, instead of {model.size:,} bytes "
        f"with sha256 {model.sha256}; nothing was kept"
    )


def _already_there(model: Published, target: Path) -> bool:
    if not target.exists():
        return False
    if target.stat().st_size == model.size and _sha256(target) == model.sha256:
        return True
    raise ConflictError(
        f"{target} exists and is another file; move it away, or choose a name with --output"
    )


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: httpx.HTTPError) -> str:
    with suppress(IndexError):
        return str(error).splitlines()[0]
    return type(error).__name__
