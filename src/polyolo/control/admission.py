"""Takes a model file in: judged, stored, recorded, in this order, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from polyolo.control.artifacts import ArtifactStore, Upload
from polyolo.control.intake import judge
from polyolo.control.service import artifacts
from polyolo.control.service.artifacts import Artifact
from polyolo.control.service.ledger import Ledger

_AT_ONCE = 2
"""Files judged at the same time; each may take a core and some GiB."""
_COPY_BYTES = 1 << 20

T = TypeVar("T")


class Admission:
    """The way of a file into the store, and out again. Any thread may use it."""

    def __init__(self, ledger: Ledger, store: ArtifactStore, inspect: Sequence[str]) -> None:
        """Keep its parts. inspect: the program that looks into a file (see intake)."""
        self._ledger = ledger
        self._store = store
        self._inspect = inspect
        self._slots = threading.Semaphore(_AT_ONCE)

    def admit(self, upload: Upload, classes: Sequence[str], record: Callable[[Artifact], T]) -> T:
        """Judge a fully written upload, store it, and return what `record` makes of it.

        classes: names that the owner gave beside the file. record: commits the row that needs
        the file; when it raises, the file is not kept. Raises ModelRefusedError. Blocks for
        seconds.
        """
        digest = upload.finish()
        facts = None if classes else artifacts.known(self._ledger, digest)
        if facts is None:
            with self._slots:
                facts = judge(upload.path, classes, self._inspect)
        artifact = Artifact(digest=digest, size=upload.size, facts=facts, given=bool(classes))
        try:
            with self._store.placing(upload, digest):
                return record(artifact)
        except BaseException:
            self.discard([digest])
            raise

    def admit_file(self, path: Path, record: Callable[[Artifact], T]) -> T:
        """Take in a copy of the operator's own file, of any size. Raises OSError too."""
        with path.open("rb") as source, self._store.upload(limit=1 << 62) as upload:
            while chunk := source.read(_COPY_BYTES):
                upload.write(chunk)
            return self.admit(upload, (), record)

    def discard(self, digests: Iterable[str]) -> None:
        """Delete those of the files that nobody needs."""
        for digest in digests:
            self._store.discard(digest, if_so=partial(artifacts.forget, self._ledger, digest))

    def sweep(self) -> None:
        """Delete what a platform that was killed left behind, in the store and in the table."""
        self.discard(self._store.digests() | artifacts.every(self._ledger))
