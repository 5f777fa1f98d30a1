"""The audit log as rows: read, verified, pruned; and its signing key, sealed."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from polyolo.control import audit, db
from polyolo.control.audit import ANCHOR, HEAD, WHOLE, Entry, Mark, Signer
from polyolo.control.secrets import Place
from polyolo.control.service import chain, verify
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError
from polyolo.resources import AuditEntry, AuditVerdict

_KEY = Place(table="audit_keys", column="sealed", row="1", tenant="")
_BATCH = 1000  # rows read at a time: an export does not hold the log in memory


def opened(engine: sa.Engine, vault: Vault) -> Signer:
    """Return the audit log's signer; the first call makes its key, and chains older events.

    Raises SealedError when the master key is not the one that sealed it.
    """
    table = db.audit_keys
    with db.writing(engine) as connection:
        sealed = connection.execute(sa.select(table.c.sealed)).scalar()
        if sealed is not None:
            return Signer(base64.b64decode(vault.unseal(connection, sealed, _KEY)))
        private = audit.new_private_key()
        sealed = vault.seal(connection, base64.b64encode(private).decode(), _KEY)
        connection.execute(table.insert().values(id=1, sealed=sealed))
        signer = Signer(private)
        _adopt(connection, signer)
        return signer


def entries(
    ledger: Ledger,
    tenant: str | None = None,
    *,
    since: float = 0.0,
    until: float = float("inf"),
    after: int = 0,
    limit: int | None = None,
) -> Iterator[AuditEntry]:
    """Yield entries in order, of one tenant or of all. since, until: unix seconds, [since, until).

    after: the place of the entry before the first. limit: at most so many.
    """
    query, place = _asked(tenant, since, until)
    query = query.order_by(place)
    left = sys.maxsize if limit is None else limit
    while left > 0:  # page by page: who stops reading leaves nothing open behind
        with ledger.reading() as connection:
            page = connection.execute(query.where(place > after).limit(min(left, _BATCH))).all()
        for found in page:
            yield _view(found, own=tenant is not None)
        if len(page) < _BATCH:
            return
        after = page[-1].seq if tenant is None else page[-1].number
        left -= len(page)


def newest(
    ledger: Ledger,
    tenant: str | None = None,
    *,
    since: float = 0.0,
    until: float = float("inf"),
    limit: int,
) -> list[AuditEntry]:
    """Return the last `limit` entries, in order (see entries)."""
    query, place = _asked(tenant, since, until)
    with ledger.reading() as connection:
        rows = connection.execute(query.order_by(place.desc()).limit(limit)).all()
    return [_view(row, own=tenant is not None) for row in reversed(rows)]


def verified(
    ledger: Ledger, tenant: str | None = None, *, witnessed: Sequence[Mark] = ()
) -> AuditVerdict:
    """Check one tenant's chain, or everything, against its hashes and signatures.

    witnessed: marks of the whole log that were kept outside the database.
    """
    with ledger.reading() as connection:
        return verify.everything(connection, ledger.signer, tenant, witnessed)


def head(ledger: Ledger) -> Mark | None:
    """Return where the whole log ends; None before its first entry."""
    table = db.audit_marks
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(table).where(table.c.chain == WHOLE, table.c.kind == HEAD)
        ).one_or_none()
    return None if row is None else chain.of_row(row)


def marks(ledger: Ledger, tenant: str) -> list[dict[str, Any]]:
    """Return the signed marks of a tenant's chain, for who verifies its entries elsewhere."""
    table = db.audit_marks
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(table).where(table.c.chain == tenant).order_by(table.c.kind)
        )
        return [dict(row) for row in rows.mappings()]


def prune(ledger: Ledger, before: float) -> int:
    """Delete the entries older than `before` (unix seconds), and return how many.

    A signed anchor a chain takes their place, so that the rest is verified as before. Raises
    ConflictError when the log does not verify: evidence is not deleted.
    """
    table = db.events
    with ledger.reading() as connection:
        kept = sa.select(sa.func.min(table.c.seq)).where(table.c.at >= before)
        first = connection.execute(kept).scalar()
        last = connection.execute(sa.select(sa.func.max(table.c.seq))).scalar() or 0
        # The last entry always stays: something has to say where the log stands.
        end = (last if first is None else first) - 1
        if not connection.execute(sa.select(table.c.seq).where(table.c.seq <= end)).first():
            return 0
        verdict = verify.everything(connection, ledger.signer, None, ())
    if verdict.problems:
        raise ConflictError("the audit log does not verify, so nothing is deleted from it")
    with ledger.changing() as transaction:
        connection = transaction.connection
        latest = (
            sa.select(table.c.tenant, sa.func.max(table.c.seq).label("seq"))
            .where(table.c.seq <= end)
            .group_by(table.c.tenant)
            .subquery()
        )
        lasts = connection.execute(
            sa.select(table).join_from(table, latest, table.c.seq == latest.c.seq)
        ).all()
        for row in lasts:
            own = Mark(chain=row.tenant or "", kind=ANCHOR, number=row.number, hash=row.chain)
            chain.put(connection, ledger.signer, own)
            if row.seq == end:
                anchor = Mark(chain=WHOLE, kind=ANCHOR, number=end, hash=row.whole)
                chain.put(connection, ledger.signer, anchor)
        gone = connection.execute(table.delete().where(table.c.seq <= end)).rowcount
        transaction.note(
            "platform",
            "audit.prune",
            tenant=None,
            resource="audit",
            detail=f"{gone} entries up to number {end}, older than the retention",
        )
    return gone


def _asked(
    tenant: str | None, since: float, until: float
) -> tuple[sa.Select[Any], sa.ColumnElement[int]]:
    row = db.events.c
    query = sa.select(db.events).where(row.at >= since, row.at < min(until, 1e15))
    if tenant is None:
        return query, row.seq
    return query.where(row.tenant == tenant), row.number


def _adopt(connection: sa.Connection, signer: Signer) -> None:
    """Chain the events of a release that kept no chain."""
    old = connection.execute(sa.select(db.events).order_by(db.events.c.seq)).mappings().all()
    if old:
        connection.execute(db.events.delete())
        kept = [Entry(**{field: row[field] for field in Entry.__slots__}) for row in old]
        chain.append(connection, signer, kept)


def _view(row: Any, *, own: bool) -> AuditEntry:
    view = AuditEntry(**{field: getattr(row, field) for field in AuditEntry.__slots__})
    if own:  # how much happens elsewhere on the platform is not the tenant's business
        view = replace(view, seq=view.number, whole="", signature=None)
    return view
