"""Usage: what gateways report, each request once, and its sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.audit import Entry, cleaned
from polyolo.control.service import credentials, erasures, quotas
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.resources import ModelUsage, Usage, UsageTaken
from polyolo.types import Plan, UsageRecord

_PARAMETERS = 10_000  # of one statement; PostgreSQL takes 65,535


def take(ledger: Ledger, records: Sequence[UsageRecord], plans: Sequence[Plan]) -> UsageTaken:
    """Keep records; those whose id is there already were told twice and count once.

    Each is in the audit log too: who called when from where, and nothing of what was seen. No
    revision: usage is no change of what anybody should do, until a tenant's quota is used up.
    """
    with ledger.changing() as transaction:
        fresh = _record(transaction, records)
        taken = quotas.count(transaction, fresh, {record.tenant for record in records}, plans)
        rows = [msgspec.to_builtins(record) for record in records]
        gone = erasures.gone(transaction.connection, {record.tenant for record in records})
        rows = [row for row in rows if row["tenant"] not in gone]
        for row in rows:  # who asked from where is for the credential's last use and the audit log
            del row["principal"], row["source"]
        credentials.used(transaction)
        db.insert_new(transaction.connection, db.usage_records, rows)
    return taken


def _record(transaction: Transaction, records: Sequence[UsageRecord]) -> list[UsageRecord]:
    """Write the audit log's entries; return those records that were not there yet."""
    ids = db.usage_records.c.id
    known: set[str] = set()
    for first in range(0, len(records), _PARAMETERS):
        part = [record.id for record in records[first : first + _PARAMETERS]]
        found = transaction.connection.execute(sa.select(ids).where(ids.in_(part)))
        known.update(found.scalars())
    fresh = []
    for record in records:
        if record.id in known:
            continue
        known.add(record.id)  # a batch may hold a record twice
        fresh.append(record)
        model = f"models/{record.model}:{record.version}" if record.model else ""
        several = f" ({record.requests} requests)" if record.requests > 1 else ""
        transaction.record(
            Entry(
                at=record.at,
                kind="detect",
                actor=cleaned(record.principal or "unknown", 100),
                action="detect",
                tenant=cleaned(record.tenant, 12),
                resource=cleaned(model, 200),
                detail=cleaned(record.id, 64) + several,
                source=cleaned(record.source, 64),
                status=record.status,
            )
        )
    return fresh


def summed(ledger: Ledger, since: float, until: float, tenant: str | None = None) -> list[Usage]:
    """Return the use of each tenant (or of one) in [since, until), unix seconds, by name."""
    record = db.usage_records.c
    sums = (
        sa.select(
            record.tenant,
            record.model,
            sa.func.sum(record.requests).label("requests"),
            sa.func.sum(record.images).label("images"),
            sa.func.sum(sa.case((record.status >= 400, record.requests), else_=0)).label("errors"),
            sa.func.sum(record.engine_ms).label("engine_ms"),
            sa.func.sum(record.bytes_in).label("bytes_in"),
        )
        .where(record.at >= since, record.at < until)
        .group_by(record.tenant, record.model)
        .order_by(record.model)
    )
    owners = (
        sa.select(db.tenants.c.id, db.tenants.c.name)
        .where(db.tenants.c.name.is_not(None))
        .order_by(db.tenants.c.name)
    )
    if tenant is not None:
        sums = sums.where(record.tenant == tenant)
        owners = owners.where(db.tenants.c.id == tenant)
    with ledger.reading() as connection:
        rows: dict[str, list[Any]] = {}
        for row in connection.execute(sums):
            rows.setdefault(row.tenant, []).append(row)
        tenants = connection.execute(owners).all()
    return [_usage(one.id, one.name, since, until, rows.get(one.id, [])) for one in tenants]


def _usage(tenant: str, name: str, since: float, until: float, rows: list[Any]) -> Usage:
    # PostgreSQL answers some sums as Decimal, which would become text in JSON.
    return Usage(
        tenant=tenant,
        name=name,
        since=since,
        until=until,
        requests=sum(int(row.requests) for row in rows),
        images=sum(int(row.images) for row in rows),
        errors=sum(int(row.errors) for row in rows),
        engine_ms=sum(float(row.engine_ms) for row in rows),
        bytes_in=sum(int(row.bytes_in) for row in rows),
        models=tuple(
            ModelUsage(
                model=row.model,
                requests=int(row.requests),
                images=int(row.images),
                engine_ms=float(row.engine_ms),
            )
            for row in rows
            if row.model  # requests refused before a model was picked have none
        ),
    )
