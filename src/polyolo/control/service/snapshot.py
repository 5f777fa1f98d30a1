"""The Snapshot: everything that a gateway needs, or what of it has changed, from one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from polyolo import months
from polyolo.control import db
from polyolo.control.service import limits, oauth, runtimes, touches
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.types import KeyEntry, Plan, Snapshot, TenantRoute, TenantState


def build(
    ledger: Ledger,
    plans: Sequence[Plan],
    signer: Signer,
    *,
    after: int | None = None,
    gateways: int = 1,
) -> Snapshot:
    """Return the snapshot of this moment.

    after: revision that the gateway has; it gets what was changed since, if that is known, else
    everything. gateways: how many there are. Suspended tenants and their keys are in it, so that
    they are told 403 and not 401; revoked keys and tenants that are being deleted are not.
    """
    tenants, keys = db.tenants.c, db.api_keys.c
    with ledger.reading() as connection:
        platform = connection.execute(sa.select(db.platform)).one()
        if after is not None and not platform.touched_since <= after <= platform.revision:
            after = None
        wanted = tenants.state != "deleting"
        changed: set[str] = set()
        if after is not None:
            changed.update(connection.execute(touches.after(after)).scalars())
            wanted = sa.and_(wanted, tenants.id.in_(touches.after(after)))
        month = months.label(ledger.clock())
        owners = connection.execute(_owners(month).where(wanted)).all()
        found = connection.execute(
            sa.select(db.api_keys)
            .join_from(db.api_keys, db.tenants)
            .where(wanted, keys.revoked_at.is_(None))
        ).all()
        clients, rules = oauth.entries(connection, wanted), signer.rules(connection)
    return Snapshot(
        revision=platform.revision,
        tenants=tuple(_route(owner, plans, month) for owner in owners),
        keys=tuple(_entry(key) for key in found),
        clients=clients,
        tokens=rules,
        since=after,
        gone=tuple(changed - {owner.id for owner in owners}),
        gateways=gateways,
    )


def _owners(month: str) -> sa.Select[Any]:
    used = db.usage_months.c
    return (
        sa.select(db.tenants, db.runtimes.c.status, used.images)
        .join_from(db.tenants, db.runtimes)
        .outerjoin(db.usage_months, sa.and_(used.tenant == db.tenants.c.id, used.month == month))
    )


def _route(owner: Any, plans: Sequence[Plan], month: str) -> TenantRoute:
    status = runtimes.read_status(owner.status)
    plan = limits.effective(owner, plans)
    counted = plan.images_per_month > 0
    return TenantRoute(
        tenant=owner.id,
        name=owner.name,
        state=TenantState(owner.state),
        plan=plan,
        phase=status.phase,
        endpoints=status.endpoints,
        retry_at=status.retry_at,
        images_used=owner.images or 0 if counted else 0,
        month=month if counted else "",
    )


def _entry(key: Any) -> KeyEntry:
    return KeyEntry(
        id=key.id,
        digest=key.digest,
        tenant=key.tenant,
        scopes=tuple(key.scopes),
        expires_at=key.expires_at,
        sources=tuple(key.sources or ()),
    )
