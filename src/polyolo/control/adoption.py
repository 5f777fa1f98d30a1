"""Brings the model files of releases that kept them open, one for all tenants, into the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from polyolo import telemetry
from polyolo.control.artifacts import Artifacts
from polyolo.control.service import artifacts
from polyolo.control.service.ledger import Ledger

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


def adopt(ledger: Ledger, store: Artifacts, directory: Path) -> None:
    """Seal each file named by its sha256 in `directory` for every tenant that uses it.

    The file itself goes last, so that all of this may be done again after a kill.
    """
    old = [entry for entry in directory.glob("*") if _DIGEST.fullmatch(entry.name)]
    if not old:
        return
    rows = artifacts.every(ledger)
    for file in old:
        for tenant, digest in rows:
            if digest == file.name and not store.has(tenant, digest):
                store.keep(tenant, digest, _pieces(file))
        file.unlink(missing_ok=True)  # another control plane may have been faster
        telemetry.logger("adoption").info("a model file was sealed", digest=file.name)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(_READ_BYTES):
            yield piece
