"""Files in memory only: a model's plain bytes never touch a disk of the control plane."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from polyolo.sandbox.job import memory_file

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file that cannot be changed any more, there for as long as the `with` that made it."""

    descriptor: int
    size: int
    sha256: str

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes, from the beginning."""
        at = 0
        while piece := os.pread(self.descriptor, _READ_BYTES, at):
            yield piece
            at += len(piece)

    def head(self, size: int) -> bytes:
        """Return its first bytes."""
        return os.pread(self.descriptor, size, 0)


@contextmanager
def gathered(pieces: Iterable[bytes]) -> Iterator[MemoryFile]:
    """Yield the bytes as a file of this process."""
    sha256, size = hashlib.sha256(), 0

    def seen() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            sha256.update(piece)
            size += len(piece)
            yield piece

    with memory_file(seen(), "model") as descriptor:
        yield MemoryFile(descriptor, size, sha256.hexdigest())
