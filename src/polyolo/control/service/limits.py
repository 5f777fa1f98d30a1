"""What each tenant may use: its plan, single fields replaced by its own limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo import months
from polyolo.control import db, plans
from polyolo.control.plans import Own
from polyolo.control.service import tenants
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import InvalidValueError, NotFoundError
from polyolo.resources import Limits, Tenant
from polyolo.types import Plan, Principal


def effective(row: Any, offered: Sequence[Plan]) -> Plan:
    """Return what a tenant may use. row: of the table of tenants."""
    return plans.effective(plans.named(row.plan, offered), plans.stored(row.limits))


def of(ledger: Ledger, tenant: str, offered: Sequence[Plan]) -> Plan:
    """Return what a tenant may use. Raises NotFoundError."""
    with ledger.reading() as connection:
        return effective(_row(connection, tenant), offered)


def get(ledger: Ledger, tenant: str, offered: Sequence[Plan]) -> Limits:
    """Return what a tenant may use, and what it has used of this month. Raises NotFoundError."""
    label = months.label(ledger.clock())
    with ledger.reading() as connection:
        row = _row(connection, tenant)
        used = connection.execute(
            sa.select(db.usage_months.c.images).where(
                db.usage_months.c.tenant == tenant, db.usage_months.c.month == label
            )
        ).scalar_one_or_none()
    return Limits(
        **{name: getattr(effective(row, offered), name) for name in Plan.__dataclass_fields__},
        own=plans.own_fields(plans.stored(row.limits)),
        images_used=used or 0,
        month=label,
    )


def change(
    ledger: Ledger, who: Principal, tenant: str, changes: Own, offered: Sequence[Plan]
) -> None:
    """Put limits of the tenant's own in place of its plan's; None takes one back.

    changes: as `plans.checked` gives it. Raises NotFoundError, and InvalidValueError for limits
    that contradict each other.
    """
    with ledger.changing() as transaction:
        row = _row(transaction.connection, tenant)
        before = plans.stored(row.limits)
        own = plans.merged(before, changes)
        plan = plans.named(row.plan, offered)
        least = own.get("min_replicas", plan.min_replicas)
        most = own.get("max_replicas", plan.max_replicas)
        if least > most:
            raise InvalidValueError(f"min_replicas ({least}) is more than max_replicas ({most})")
        if own == before:
            return
        _put(transaction, row, {"limits": own or None}, offered)
        transaction.note(
            actor(who),
            "limits.change",
            tenant=tenant,
            resource="limits",
            detail=msgspec.json.encode(changes).decode(),
        )


def set_plan(
    ledger: Ledger, who: Principal, tenant: str, plan: str, offered: Sequence[Plan]
) -> Tenant:
    """Give a tenant another plan; its own limits stay. Raises InvalidValueError, NotFoundError."""
    tenants.offered(plan, offered)
    with ledger.changing() as transaction:
        row = _row(transaction.connection, tenant)
        if row.plan != plan:
            _put(transaction, row, {"plan": plan}, offered)
            transaction.note(
                actor(who),
                "tenant.plan",
                tenant=tenant,
                resource="tenant",
                detail=f"{row.plan} to {plan}",
            )
    return tenants.get(ledger, tenant)


def _put(
    transaction: Transaction, row: Any, values: dict[str, Any], offered: Sequence[Plan]
) -> None:
    connection = transaction.connection
    before = effective(row, offered)
    connection.execute(db.tenants.update().where(db.tenants.c.id == row.id).values(**values))
    if effective(_row(connection, row.id), offered).resources != before.resources:
        transaction.new_generation(row.id)  # its runtime is to run within other bounds


def _row(connection: sa.Connection, tenant: str) -> Any:
    row = connection.execute(
        sa.select(db.tenants).where(db.tenants.c.id == tenant, db.tenants.c.state != "deleting")
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such tenant")
    return row
