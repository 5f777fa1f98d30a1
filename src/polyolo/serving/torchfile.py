"""Tells by a file's table of contents which kind of PyTorch archive it is, opening nothing in it.

A TorchScript archive and an exported program are programs. A checkpoint (torch.save) is a pickle,
which is never opened: unpickling it does whatever its maker wanted.
"""

from __future__ import annotations

import io
import zipfile
from typing import Literal

_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))

Kind = Literal["TorchScript archive", "exported program"]


def kind(data: bytes) -> Kind | None:
    """Return what a file is to PyTorch; None for anything else, a checkpoint too."""
    names = _names(data)
    if "archive_format" in names and any(name.startswith("models/") for name in names):
        return "exported program"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "TorchScript archive"
    return None


def is_checkpoint(data: bytes) -> bool:
    """Say whether a file is a checkpoint, or another pickle."""
    return data[:2] in _PICKLES or ("data.pkl" in _names(data) and kind(data) is None)


def _names(data: bytes) -> set[str]:
    """Return what an archive holds, below its one folder, named after the file when written."""
    if not data.startswith(b"PK\x03\x04"):
        return set()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return set()
