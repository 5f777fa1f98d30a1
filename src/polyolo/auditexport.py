"""The audit log as lines of text: JSON Lines and CSV, written alike by server and command line."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

import msgspec

from polyolo.resources import AuditEntry

FORMATS = ("jsonl", "csv")
_NAMES = tuple(field.name for field in fields(AuditEntry))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_encode = msgspec.json.Encoder().encode


def header(form: str) -> bytes:
    """Return what comes before the first entry."""
    return _csv(_NAMES) if form == "csv" else b""


def line(entry: AuditEntry, form: str) -> bytes:
    """Return one entry as a line."""
    if form == "jsonl":
        return _encode(entry) + b"\n"
    return _csv(tuple(_cell(getattr(entry, name)) for name in _NAMES))


def _cell(value: object) -> object:
    # A spreadsheet would run what begins like a formula; clients choose some of these texts.
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


def _csv(cells: tuple[object, ...]) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue().encode()
