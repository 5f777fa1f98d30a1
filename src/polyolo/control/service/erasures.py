"""Erasures: a tenant deleted so that nothing is left but what has to be kept, and a certificate.

Done in steps, each a transaction that may be the last one of a killed process: whoever reconciles
goes on where it stopped. First the order and a signed mark, after which nothing of the tenant is
written in words any more; then runtime, rows, files; then the words of the audit log and the
single detections; at last the certificate, which is handed out once the database holds no copy of
what it deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import audit, db, names
from polyolo.control.audit import ERASED, GENESIS, Entry, Mark
from polyolo.control.service import chain
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.control.service.vault import Vault
from polyolo.errors import NotFoundError
from polyolo.resources import Certificate, Erasure, Kept
from polyolo.types import Principal

ACCOUNTING_YEARS = 10
"""Years after the end of this one for which sums of use are kept, the longest that tax laws ask
for; the certificate goes with them."""
_BATCH = 2000  # audit entries of one transaction: some 50 ms in which nobody else writes
_WORDLESS = {"salt": None, "resource": "", "detail": "", "source": ""}
_DAY_S = 86400.0


def order(ledger: Ledger, who: Principal, tenant: str) -> Erasure:
    """Have a tenant erased, also one that was deleted before; return the order that there is.

    Keys stop, the name is free, the reconciler does the rest. Repeating it changes nothing.
    """
    table = db.erasures
    with ledger.changing() as transaction:
        connection = transaction.connection
        known = connection.execute(sa.select(table).where(table.c.tenant == tenant)).one_or_none()
        if known is not None:
            return _view(known)
        mark = Mark(chain=tenant, kind=ERASED, number=0, hash=GENESIS)
        chain.put(connection, ledger.signer, mark)
        connection.execute(
            db.tenants.update().where(db.tenants.c.id == tenant).values(state="deleting", name=None)
        )
        by, identifier = actor(who), names.erasure_id()
        connection.execute(
            table.insert().values(
                id=identifier,
                tenant=tenant,
                requested_at=transaction.now,
                requested_by=by,
                progress={"removed": {}, "files": [], "months": {}},
            )
        )
        transaction.note(by, "tenant.erase", tenant=tenant, resource="tenant")
    return get(ledger, identifier)


def get(ledger: Ledger, identifier: str) -> Erasure:
    """Return an erasure. Raises NotFoundError."""
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(db.erasures).where(db.erasures.c.id == identifier)
        ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such erasure")
    return _view(row)


def every(ledger: Ledger) -> list[Erasure]:
    """Return all erasures, oldest first; for the operator."""
    query = sa.select(db.erasures).order_by(db.erasures.c.requested_at, db.erasures.c.id)
    with ledger.reading() as connection:
        return [_view(row) for row in connection.execute(query)]


def unfinished(ledger: Ledger) -> set[str]:
    """Return the tenants whose erasure is not finished."""
    query = sa.select(db.erasures.c.tenant).where(db.erasures.c.kept_until.is_(None))
    with ledger.reading() as connection:
        return set(connection.execute(query).scalars())


def gone(connection: sa.Connection, tenants: set[str]) -> set[str]:
    """Return those of the tenants whose certificate is written: nothing more is kept of them."""
    table = db.erasures
    query = sa.select(table.c.tenant).where(
        table.c.tenant.in_(tenants), sa.not_(table.c.certificate.is_(None))
    )
    return set(connection.execute(query).scalars())


def removed(transaction: Transaction, tenant: str, counts: dict[str, int], files: set[str]) -> None:
    """Remember for the certificate what is deleted, in the transaction that deletes it."""
    row = _row(transaction.connection, tenant)
    if row is not None:
        _save(transaction, tenant, row.progress | {"removed": counts, "files": sorted(files)})


def advance(
    ledger: Ledger,
    vault: Vault,
    tenant: str,
    *,
    platform: str,
    audit_days: int,
    discard: Callable[[str], None],
) -> bool:
    """Do the next piece of a tenant's erasure, after its rows are gone; say whether all is done.

    platform: URL that the certificate names. discard: deletes the tenant's files. A piece
    takes about as long as a large request, but for the last one, in which SQLite's file is written
    anew.
    """
    with ledger.reading() as connection:
        row = _row(connection, tenant)
    if row is None or row.kept_until is not None:
        return True
    if row.certificate is None:
        if _redact(ledger, tenant) or _sum_up(ledger, tenant):
            return False
        discard(tenant)
        _certify(ledger, tenant, platform, audit_days)
    vault.forget(tenant)
    if not ledger.scrub():
        return False
    with ledger.changing() as transaction:
        until = datetime(_year(transaction.now) + ACCOUNTING_YEARS + 1, 1, 1, tzinfo=UTC)
        transaction.connection.execute(
            db.erasures.update()
            .where(db.erasures.c.tenant == tenant)
            .values(kept_until=until.timestamp())
        )
        transaction.note("reconciler", "tenant.erased", tenant=tenant, resource="tenant")
    return True


def prune(ledger: Ledger) -> None:
    """Delete the certificates that nobody has to keep any longer."""
    with ledger.changing() as transaction:
        over = db.erasures.c.kept_until <= transaction.now
        transaction.connection.execute(db.erasures.delete().where(over))


def _redact(ledger: Ledger, tenant: str) -> bool:
    """Take the words from some entries, and leave a commitment; say whether there were any."""
    row = db.events.c
    worded = sa.or_(row.resource != "", row.detail != "", row.source != "")
    with ledger.changing() as transaction:
        connection = transaction.connection
        found = connection.execute(
            sa.select(db.events).where(row.tenant == tenant, worded).order_by(row.seq).limit(_BATCH)
        ).mappings()
        left = []
        for one in found:
            entry = Entry(**{field: one[field] for field in Entry.__slots__})
            words = audit.commitment(entry, one["salt"])
            left.append({"place": one["seq"], "redacted": words, **_WORDLESS})
        if left:
            connection.execute(db.events.update().where(row.seq == sa.bindparam("place")), left)
    return bool(left)


def _sum_up(ledger: Ledger, tenant: str) -> bool:
    """Put the sums of the oldest month in the place of its detections; say whether there is one."""
    with ledger.changing() as transaction:
        connection, record = transaction.connection, db.usage_records.c
        oldest = connection.execute(
            sa.select(sa.func.min(record.at)).where(record.tenant == tenant)
        ).scalar()
        if oldest is None:
            return False
        month = datetime.fromtimestamp(oldest, UTC)
        year, following = divmod(month.year * 12 + month.month, 12)
        end = datetime(year, following + 1, 1, tzinfo=UTC).timestamp()
        within = sa.and_(record.tenant == tenant, record.at < end)
        sums = (
            connection.execute(
                sa.select(
                    sa.func.count().label("requests"),
                    sa.func.sum(record.images).label("images"),
                    sa.func.sum(sa.case((record.status >= 400, 1), else_=0)).label("errors"),
                    sa.func.sum(record.engine_ms).label("engine_ms"),
                    sa.func.sum(record.bytes_in).label("bytes_in"),
                ).where(within)
            )
            .mappings()
            .one()
        )
        connection.execute(db.usage_records.delete().where(within))
        progress = _row(connection, tenant).progress
        named = f"{month:%Y-%m}"
        before = progress["months"].get(named, {})
        after = {name: int(value) + before.get(name, 0) for name, value in sums.items()}
        _save(transaction, tenant, progress | {"months": progress["months"] | {named: after}})
    return True


def _certify(ledger: Ledger, tenant: str, platform: str, audit_days: int) -> None:
    """Write the certificate; from now on nothing more is kept of the tenant's use."""
    table = db.erasures
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        row = _row(connection, tenant)
        event = db.events.c
        of_it = event.tenant == tenant
        entries = connection.execute(sa.select(sa.func.count()).where(of_it)).scalar_one()
        redacted = connection.execute(
            sa.select(sa.func.count()).where(of_it, event.redacted.is_not(None))
        ).scalar_one()
        said: dict[str, Any] = msgspec.to_builtins(
            Certificate(
                format="polyolo.erasure.1",
                platform=platform,
                tenant=tenant,
                requested_at=_moment(row.requested_at),
                requested_by=row.requested_by,
                finished_at=_moment(now),
                removed=row.progress["removed"] | {"words of audit entries": redacted},
                files=tuple(row.progress["files"]),
                kept=_kept(entries, now, audit_days),
                usage=row.progress["months"],
                public_key="",
                signature="",
            )
        )
        connection.execute(
            table.update()
            .where(table.c.tenant == tenant)
            .values(certificate=ledger.signer.attest(said))
        )


def _kept(entries: int, now: float, audit_days: int) -> tuple[Kept, ...]:
    log_until = _moment(now + audit_days * _DAY_S)
    accounts_until = f"{_year(now) + ACCOUNTING_YEARS}-12-31"
    return (
        Kept(
            what=f"{entries} entries of the audit log: when which credential (by its number) did "
            "what, and the outcome; without addresses, names and details",
            why="to detect and to prove misuse of the platform",
            until=log_until,
        ),
        Kept(
            what="calls that named no tenant, as sign-ins that failed, with their addresses",
            why="to detect and to prove misuse of the platform",
            until=log_until,
        ),
        Kept(
            what="the sums of use by month that this certificate tells, and the certificate",
            why="accounting and tax law, and the proof of this erasure",
            until=accounts_until,
        ),
        Kept(
            what="copies that the operator made before: backups, and the files in which a "
            "database server keeps what it has overwritten",
            why="they are replaced as a whole, not edited",
            until="the operator's own schedule for them",
        ),
    )


def _row(connection: sa.Connection, tenant: str) -> Any:
    return connection.execute(
        sa.select(db.erasures).where(db.erasures.c.tenant == tenant)
    ).one_or_none()


def _save(transaction: Transaction, tenant: str, progress: dict[str, Any]) -> None:
    transaction.connection.execute(
        db.erasures.update().where(db.erasures.c.tenant == tenant).values(progress=progress)
    )


def _year(now: float) -> int:
    return datetime.fromtimestamp(now, UTC).year


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _view(row: Any) -> Erasure:
    done = row.kept_until is not None
    return Erasure(
        id=row.id,
        tenant=row.tenant,
        state="done" if done else "running",
        requested_at=row.requested_at,
        requested_by=row.requested_by,
        certificate=msgspec.convert(row.certificate, Certificate) if done else None,
    )
