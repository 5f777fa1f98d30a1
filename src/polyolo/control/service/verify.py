"""Walks the audit log and names every entry that is not as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from polyolo.control import audit, db
from polyolo.control.audit import ANCHOR, ERASED, GENESIS, HEAD, WHOLE, Entry, Mark, Verifier
from polyolo.control.service import chain
from polyolo.resources import AuditProblem, AuditVerdict

_BATCH = 1000  # rows read at a time
_TOLD = 100  # problems told: who rewrote everything is not listed entry by entry


def everything(
    connection: sa.Connection, signer: Verifier, tenant: str | None, witnessed: Sequence[Mark]
) -> AuditVerdict:
    """Return what is wrong with the log, or with one tenant's entries.

    witnessed: marks of the whole log from outside the database: it must have reached them, and
    have been so.
    """
    kept = sa.select(db.audit_marks)
    if tenant is not None:
        kept = kept.where(db.audit_marks.c.chain == tenant)
    check = _Check(signer, tenant, connection.execute(kept).mappings().all(), witnessed)
    count = 0
    query = sa.select(db.events).order_by(db.events.c.seq)
    if tenant is not None:
        query = query.where(db.events.c.tenant == tenant)
    for row in connection.execution_options(yield_per=_BATCH).execute(query).mappings():
        count += 1
        check.row(row)
    return check.verdict(count)


def exported(
    entries: Iterable[Mapping[str, Any]],
    marks: Sequence[Mapping[str, Any]],
    verifier: Verifier,
    tenant: str,
) -> AuditVerdict:
    """Return what is wrong with a tenant's entries as they were exported, away from the platform.

    entries: in order, as AuditEntry. marks: those of the tenant's chain.
    """
    check, count = _Check(verifier, tenant, marks, ()), 0
    for entry in entries:
        count += 1
        check.row(entry)
    return check.verdict(count)


class _Check:
    """The state of one walk."""

    def __init__(
        self,
        signer: Verifier,
        tenant: str | None,
        marks: Sequence[Mapping[Any, Any]],
        witnessed: Sequence[Mark],
    ) -> None:
        self.problems: list[AuditProblem] = []
        self._signer = signer
        self._tenant = tenant
        self._at: dict[str, Mark] = {}  # by chain: where the walk stands
        self._seq: dict[str, int] = {}  # by chain: the last entry that was seen
        self._heads: dict[str, Mark] = {}
        self._erased: dict[str, Mark] = {}
        self._last = 0
        self._sure = 0  # the last entry up to which a signature holds
        self._witnessed = {mark.number: mark.hash for mark in witnessed}
        for row in marks:
            mark = Mark(**{field: row[field] for field in Mark.__slots__})
            kinds = {HEAD: self._heads, ANCHOR: self._at, ERASED: self._erased}
            if signer.signed(audit.of_mark(mark), row["signature"]):
                kinds[mark.kind][mark.chain] = mark
                continue
            self._say(mark.number, f"the {mark.kind} of {_named(mark.chain)} was forged")
            if mark.kind != ERASED:  # nobody's words may go on a forger's word
                kinds.get(mark.kind, {})[mark.chain] = mark
        begins = self._at.get(WHOLE)
        self._last = 0 if begins is None else begins.number
        for number in [one for one in self._witnessed if one < self._last]:
            del self._witnessed[number]  # pruned since
        if begins is not None:
            self._witness(begins.number, begins.hash)

    def row(self, row: Mapping[Any, Any]) -> None:
        """Check one entry: what it says, its place, what it follows, its signature."""
        own, number = row["tenant"] or "", row["number"] or 0
        place = row["seq"] if self._tenant is None else number
        before = len(self.problems)
        entry = Entry(**{field: row[field] for field in Entry.__slots__})
        words = row["redacted"] or audit.commitment(entry, row["salt"] or "")
        if row["digest"] != audit.digest(entry, number, words):
            self._say(place, "the entry was edited, moved or put in")
        elif row["redacted"] and (own not in self._erased or entry != audit.wordless(entry)):
            self._say(place, "what it said was taken away or replaced, and not by an erasure")
        if self._tenant is None:
            if place != self._last + 1:
                self._gone(self._last + 1, place - 1)
            self._follows(row, place, WHOLE, place, row["whole"])
            self._witness(place, row["whole"])
        self._follows(row, place, own, number, row["chain"])
        self._last = self._seq[own] = place
        if row["signature"] is None:
            return
        if self._signer.signed(chain.message(row), row["signature"]):
            self._sure = place
        elif len(self.problems) == before:
            self._say(
                place, f"its signature does not hold: {self._sure + 1} to {place} is in doubt"
            )

    def _follows(
        self, row: Mapping[Any, Any], place: int, name: str, number: int, hash_: str
    ) -> None:
        stands = self._at.get(name, Mark(chain=name, kind=HEAD, number=0, hash=GENESIS))
        if number != stands.number + 1:
            if self._tenant is not None:
                self._gone(stands.number + 1, number - 1)
            elif name != WHOLE:  # there it is told as missing
                where = f"it is number {number} of {_named(name)}, after {stands.number}"
                self._say(place, where)
        elif hash_ != _linked(stands.hash, row["digest"]):
            before = self._seq.get(name, self._last)
            self._say(place, f"{before} or {place} was changed: they do not follow each other")
        # Goes on from what is written, so that one change is told once and not for all after it.
        self._at[name] = Mark(chain=name, kind=HEAD, number=number, hash=hash_ or GENESIS)

    def verdict(self, count: int) -> AuditVerdict:
        """Return what was found, after the last entry. count: of them."""
        self._ends()
        told = tuple(self.problems[:_TOLD])
        return AuditVerdict(entries=count, problems=told, public_key=self._signer.public)

    def _ends(self) -> None:
        """Check that every chain ends where it was signed to end."""
        for name in sorted({*self._heads, *self._at}):
            stands, head = self._at.get(name), self._heads.get(name)
            reached = 0 if stands is None else stands.number
            if head is None:
                self._say(self._seq.get(name, reached), f"the head of {_named(name)} is gone")
            elif head.number > reached:
                if name == WHOLE or self._tenant is not None:
                    self._gone(reached + 1, head.number)
                else:
                    what = f"entries {reached + 1} to {head.number} of {_named(name)} are missing"
                    self._say(self._seq.get(name, 0), what)
            elif head.number < reached:
                self._say(self._seq.get(name, reached), f"it lies beyond the end of {_named(name)}")
            elif stands is not None and stands.hash != head.hash:
                where = self._seq.get(name, reached)
                self._say(where, f"{_named(name)} was rewritten after {self._sure}")
        for number in self._witnessed:
            self._say(number, "the log does not reach what was witnessed: it was cut off")

    def _witness(self, seq: int, whole: str) -> None:
        if self._witnessed.pop(seq, whole) != whole:
            self._say(seq, "the log was another one when it was witnessed: it was rewritten")

    def _gone(self, first: int, last: int) -> None:
        if first > last:
            self._say(self._last, f"it stands where {first} belongs")
            return
        for number in range(first, min(last, first + _TOLD) + 1):
            self._say(number, "the entry is missing")

    def _say(self, seq: int, what: str) -> None:
        self.problems.append(AuditProblem(seq=seq, problem=what))


def _linked(before: str, made: str | None) -> str | None:
    try:
        return audit.link(before, made or "")
    except ValueError:  # not even hexadecimal
        return None


def _named(name: str) -> str:
    if name == WHOLE:
        return "the whole log"
    return f"tenant {name}'s chain" if name else "the platform's chain"
