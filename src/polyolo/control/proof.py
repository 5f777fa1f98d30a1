"""Checks an export of a tenant, or the certificate of its erasure, away from the platform."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from polyolo.control import audit
from polyolo.control.export import AUDIT, FORMAT, MANIFEST, MARKS
from polyolo.control.service import verify
from polyolo.errors import InvalidValueError
from polyolo.resources import AuditVerdict

_SMALL = 64 << 20  # bytes of a document that is read as a whole; a manifest has 150 a member
_CHUNK = 1 << 20
_FORMATS = {FORMAT: "export", "polyolo.erasure.1": "certificate of erasure"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a file is, and what is wrong with it; no problems: it is as it was signed."""

    kind: str
    tenant: str
    platform: str
    public_key: str
    """Whose signature it is; for the reader to compare with the platform's."""
    problems: tuple[str, ...]
    entries: int = 0
    """Of the audit log, in an export."""


def check(path: Path) -> Proof:
    """Return what is wrong with an export or a certificate.

    Raises OSError, and InvalidValueError for a file that is neither.
    """
    neither = InvalidValueError(f"{path} is neither an export nor a certificate of erasure")
    packed = zipfile.is_zipfile(path)
    if not packed:
        with path.open("rb") as file:
            document = _document(file.read(_SMALL))
        return _proof(neither, document, [])
    try:
        with zipfile.ZipFile(path) as archive:
            document = _document(_read(archive, MANIFEST))
            problems = _members(archive, document)
            if problems:
                return _proof(neither, document, problems)
            verdict = _log(archive, document)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError):
        raise neither from None
    told = [f"{AUDIT}: {problem.seq}: {problem.problem}" for problem in verdict.problems]
    return _proof(neither, document, told, verdict.entries)


def _proof(
    neither: InvalidValueError, document: dict[str, Any], problems: list[str], entries: int = 0
) -> Proof:
    kind = _FORMATS.get(document.get("format", ""))
    if kind is None:
        raise neither
    if not audit.attested(document):
        problems = ["it is not as it was signed", *problems]
    return Proof(
        kind=kind,
        tenant=str(document.get("tenant", "")),
        platform=str(document.get("platform", "")),
        public_key=str(document.get("public_key", "")),
        problems=tuple(problems),
        entries=entries,
    )


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        return member.read(_SMALL)


def _members(archive: zipfile.ZipFile, manifest: dict[str, Any]) -> list[str]:
    """Return which members are not those, or not as, the manifest says."""
    told = cast("dict[str, dict[str, Any]]", manifest["members"])
    there = [name for name in archive.namelist() if name != MANIFEST]
    problems = [f"{name}: it is there twice" for name in set(there) if there.count(name) > 1]
    problems += [f"{name}: it is missing" for name in told if name not in there]
    problems += [f"{name}: it does not belong here" for name in there if name not in told]
    for name in set(there) & set(told):
        sha256, left = hashlib.sha256(), int(told[name]["bytes"])
        with archive.open(name) as member:
            while left > 0 and (chunk := member.read(min(_CHUNK, left))):
                sha256.update(chunk)
                left -= len(chunk)
            more = member.read(1)
        if left or more or sha256.hexdigest() != told[name]["sha256"]:
            problems.append(f"{name}: it was changed")
    return sorted(problems)


def _log(archive: zipfile.ZipFile, manifest: dict[str, Any]) -> AuditVerdict:
    verifier = audit.Verifier(manifest["public_key"])

    def entries() -> Iterator[dict[str, Any]]:
        with archive.open(AUDIT) as lines:
            for line in lines:
                yield json.loads(line)

    marks = _document(_read(archive, MARKS))["marks"]
    return verify.exported(entries(), marks, verifier, manifest["tenant"])
