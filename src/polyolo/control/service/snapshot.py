"""The Snapshot: everything that a gateway needs, built whole from one moment of the database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service import oauth, runtimes
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.tenants import plan_named
from polyolo.types import KeyEntry, Plan, Snapshot, TenantRoute, TenantState


def build(ledger: Ledger, plans: Sequence[Plan], signer: Signer) -> Snapshot:
    """Return the snapshot of this moment.

    Suspended tenants and their keys are in it, so that they are told 403 and not 401; revoked
    keys and tenants that are being deleted are not.
    """
    live = db.tenants.c.state != "deleting"
    with ledger.reading() as connection:
        revision = connection.execute(sa.select(db.platform.c.revision)).scalar_one()
        owners = connection.execute(
            sa.select(db.tenants, db.runtimes.c.status)
            .join_from(db.tenants, db.runtimes)
            .where(live)
        ).all()
        keys = connection.execute(
            sa.select(db.api_keys)
            .join_from(db.api_keys, db.tenants)
            .where(live, db.api_keys.c.revoked_at.is_(None))
        ).all()
        clients, rules = oauth.entries(connection), signer.rules(connection)
    routes = []
    for owner in owners:
        status = runtimes.read_status(owner.status)
        routes.append(
            TenantRoute(
                tenant=owner.id,
                name=owner.name,
                state=TenantState(owner.state),
                plan=plan_named(owner.plan, plans),
                phase=status.phase,
                endpoints=status.endpoints,
            )
        )
    entries = tuple(
        KeyEntry(
            id=key.id,
            digest=key.digest,
            tenant=key.tenant,
            scopes=tuple(key.scopes),
            expires_at=key.expires_at,
            sources=tuple(key.sources or ()),
        )
        for key in keys
    )
    return Snapshot(
        revision=revision, tenants=tuple(routes), keys=entries, clients=clients, tokens=rules
    )
