"""Everything about one tenant in one archive, written as it is read: memory stays bounded.

A zip: a JSON document for each kind of thing, the model files by SHA-256, the audit log as JSON
Lines with the signed marks that say where it begins and ends, and at last `manifest.json`, signed,
with the SHA-256 of each of them.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from typing import IO, cast

import msgspec

from polyolo import auditexport
from polyolo.control.service import audit, exports
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault

FORMAT = "polyolo.export.1"
MANIFEST = "manifest.json"
AUDIT, MARKS = "audit.jsonl", "audit-marks.json"
_BLOCK = 1 << 18  # bytes gathered before they are sent
_encode = msgspec.json.Encoder().encode

Member = tuple[str, Iterator[bytes]]
Read = Callable[[str, str], Iterator[bytes]]
"""Yields the model file of a tenant with a sha256; raises FileNotFoundError."""


class _Outgoing:
    """A file that can only be written to, and is emptied from time to time."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes, /) -> int:
        self.written += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: what is written is here."""

    def take(self) -> bytes:
        taken = bytes(self.written)
        self.written.clear()
        return taken


def archive(
    ledger: Ledger, vault: Vault, read: Read, tenant: str, platform: str
) -> Iterator[bytes]:
    """Yield the archive of a tenant. platform: URL that the manifest names.

    Not one moment of the database: what is changed meanwhile is in it as it was, or as it is.
    """
    outgoing, members = _Outgoing(), {}
    now = ledger.clock()
    # A file that cannot be wound back: sizes and sums come behind each member.
    with zipfile.ZipFile(cast("IO[bytes]", outgoing), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, chunks in _members(ledger, vault, read, tenant):
            entry = zipfile.ZipInfo(name, time.gmtime(now)[:6])
            weights = name.startswith("files/")  # that do not get smaller
            entry.compress_type = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
            sha256, size = hashlib.sha256(), 0
            with packed.open(entry, "w", force_zip64=True) as member:
                for chunk in chunks:
                    sha256.update(chunk)
                    size += len(chunk)
                    member.write(chunk)
                    if len(outgoing.written) >= _BLOCK:
                        yield outgoing.take()
            members[name] = {"sha256": sha256.hexdigest(), "bytes": size}
        manifest = {
            "format": FORMAT,
            "platform": platform,
            "tenant": tenant,
            "made_at": int(now),
            "members": members,
        }
        signed = _encode(ledger.signer.attest(manifest))
        packed.writestr(MANIFEST, msgspec.json.format(signed, indent=2))
    yield outgoing.take()


def _members(ledger: Ledger, vault: Vault, read: Read, tenant: str) -> Iterator[Member]:
    marks = audit.marks(ledger, tenant)
    last = max((mark["number"] for mark in marks if mark["kind"] == "head"), default=0)
    yield AUDIT, _entries(ledger, tenant, last)
    yield MARKS, iter([_encode({"public_key": ledger.signer.public, "marks": marks})])
    digests: dict[str, None] = {}
    for table in exports.tables():
        rows = exports.rows(ledger, vault, table, tenant)
        if table.name in exports.FILES:
            rows = _noting(rows, digests)
        yield f"{table.name}.json", _listed(rows)
    for digest in digests:
        pieces = read(tenant, digest)
        try:
            first = next(pieces, b"")
        except FileNotFoundError:  # its model was deleted meanwhile
            continue
        yield f"files/{digest}", chain([first], pieces)


def _entries(ledger: Ledger, tenant: str, last: int) -> Iterator[bytes]:
    for entry in audit.entries(ledger, tenant):
        if entry.number > last:  # written since the marks were read
            return
        yield auditexport.line(entry, "jsonl")


def _noting(
    rows: Iterator[dict[str, object]], digests: dict[str, None]
) -> Iterator[dict[str, object]]:
    for row in rows:
        digests[str(row["digest"])] = None
        yield row


def _listed(rows: Iterator[dict[str, object]]) -> Iterator[bytes]:
    before = b"[\n"
    for row in rows:
        yield before + _encode(row)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"
