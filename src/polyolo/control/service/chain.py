"""Appends to the audit log: places, hashes, signatures, within the transaction of a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from polyolo.control import audit, db
from polyolo.control.audit import ERASED, GENESIS, HEAD, WHOLE, Entry, Mark, Signer
from polyolo.errors import PolyoloError


def append(connection: sa.Connection, signer: Signer, entries: Sequence[Entry]) -> None:
    """Write `entries` at the end of the log and sign where it ends now.

    What is said of an erased tenant is said without words. connection: a transaction that
    writes; such take turns, so the ends read here are the last.
    Raises PolyoloError when the log's end is not as we signed it: who changed it must not have
    it signed anew by the next entry.
    """
    chains = {WHOLE, *(entry.tenant or "" for entry in entries)}
    heads, erased = _heads(connection, signer, chains)
    rows: list[dict[str, Any]] = []
    whole = heads[WHOLE]
    for said in entries:
        own = heads[said.tenant or ""]
        entry = audit.wordless(said) if own.chain in erased else said
        seq, number, salt = whole.number + 1, own.number + 1, audit.new_salt()
        made = audit.digest(entry, number, audit.commitment(entry, salt))
        whole = _after(whole, made)
        heads[own.chain] = _after(own, made)
        rows.append(
            {
                **{field: getattr(entry, field) for field in Entry.__slots__},
                "seq": seq,
                "number": number,
                "digest": made,
                "chain": heads[own.chain].hash,
                "whole": whole.hash,
                "salt": salt,
                "signature": None,
            }
        )
    heads[WHOLE] = whole
    rows[-1]["signature"] = signer.sign(message(rows[-1]))
    connection.execute(db.events.insert(), rows)
    for head in heads.values():
        put(connection, signer, head)


def message(row: Any) -> bytes:
    """Return what the signature of an entry's row covers. row: a mapping."""
    chain = row["tenant"] or ""
    return audit.of_entry(row["seq"], row["whole"], chain, row["number"], row["chain"])


def put(connection: sa.Connection, signer: Signer, mark: Mark) -> None:
    """Write a mark, signed, in the place of the one before."""
    table = db.audit_marks
    connection.execute(table.delete().where(table.c.chain == mark.chain, table.c.kind == mark.kind))
    connection.execute(
        table.insert().values(
            chain=mark.chain,
            kind=mark.kind,
            number=mark.number,
            hash=mark.hash,
            signature=signer.sign(audit.of_mark(mark)),
        )
    )


def of_row(row: Any) -> Mark:
    """Return the mark in a row."""
    return Mark(chain=row.chain, kind=row.kind, number=row.number, hash=row.hash)


def _heads(
    connection: sa.Connection, signer: Signer, chains: set[str]
) -> tuple[dict[str, Mark], set[str]]:
    """Return where each chain ends, and which of them are an erased tenant's."""
    table = db.audit_marks
    rows = connection.execute(
        sa.select(table).where(table.c.kind.in_((HEAD, ERASED)), table.c.chain.in_(chains))
    ).all()  # an open cursor in the traceback of what is raised here would keep a lock
    heads = {
        chain: Mark(chain=chain, kind=HEAD, number=0, hash=GENESIS) for chain in sorted(chains)
    }
    for row in rows:
        mark = of_row(row)
        if mark.kind == HEAD:
            heads[row.chain] = mark
        if not signer.signed(audit.of_mark(mark), row.signature):
            raise PolyoloError(
                "the audit log's end is not as it was signed, so nothing is added to it; "
                "see what was changed with `polyolo audit --verify`, and restore the database"
            )
    return heads, {row.chain for row in rows if row.kind == ERASED}


def _after(head: Mark, made: str) -> Mark:
    return Mark(
        chain=head.chain, kind=HEAD, number=head.number + 1, hash=audit.link(head.hash, made)
    )
