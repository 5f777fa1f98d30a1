"""Tenants: made with their first key and runtime, suspended, resumed, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service import erasures, holdings, keys, runtimes, touches
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import ConflictError, InvalidValueError, NotFoundError
from polyolo.resources import ApiKey, Tenant
from polyolo.types import STANDARD, Phase, Plan, Principal, TenantState

_DELETING = "deleting"


def create(
    ledger: Ledger, who: Principal, name: str, plan: str | None, plans: Sequence[Plan]
) -> Tenant:
    """Make a tenant, its first API key (told in the answer only) and its runtime's row.

    plan: None for the first of `plans`. Raises InvalidValueError, and ConflictError for a name
    that is taken.
    """
    names.checked(name, "tenant", reserved="me")
    chosen = plans[0].name if plan is None else offered(plan, plans)
    identifier = names.tenant_id()
    try:
        with ledger.changing() as transaction:
            add(transaction, actor(who), identifier, name, chosen)
            key = keys.issue(transaction, who, identifier, "first", names.SCOPES, None)
    except sa.exc.IntegrityError:
        raise ConflictError(f"the name {name!r} is taken, choose another one") from None
    return get(ledger, identifier, api_key=key)


def offered(plan: str, plans: Sequence[Plan]) -> str:
    """Return the plan's name; raise InvalidValueError for one that there is not."""
    known = [offer.name for offer in plans]
    if plan not in known:
        raise InvalidValueError(f"plan: {plan!r} is not one of {', '.join(known)}")
    return plan


def add(transaction: Transaction, by: str, identifier: str, name: str, plan: str) -> None:
    """Add a tenant and its runtime's row within a larger change. by: the event's actor.

    Raises sqlalchemy's IntegrityError for a name that is taken.
    """
    transaction.connection.execute(
        db.tenants.insert().values(
            id=identifier,
            name=name,
            plan=plan,
            state=TenantState.ACTIVE.value,
            created_at=transaction.now,
        )
    )
    transaction.connection.execute(
        db.runtimes.insert().values(
            tenant=identifier,
            generation=1,
            status=runtimes.blank(identifier, Phase.ASLEEP),
        )
    )
    transaction.note(
        by, "tenant.create", tenant=identifier, resource=f"tenants/{name}", detail=f"plan {plan}"
    )


def resolve(ledger: Ledger, who: Principal, reference: str, *, gone: bool = False) -> str:
    """Return the id of the tenant that `reference` (id, name or `me`) means to `who`.

    gone: to the operator, also the id of one that was deleted. Raises NotFoundError, in the same
    words for a tenant that does not exist and for one that is not the caller's.
    """
    missing = NotFoundError(f"there is no tenant {reference!r}")
    if reference == "me":
        if who.tenant is None:
            raise InvalidValueError("an operator has no tenant of its own; name one instead of me")
        return who.tenant
    live = db.tenants.c.state != _DELETING
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.tenants.c.id).where(
                sa.or_(db.tenants.c.id == reference, db.tenants.c.name == reference), live
            )
        )
        found = {row.id for row in rows}
        if gone and not found and who.kind == "operator":
            chains = sa.select(db.events.c.tenant).where(db.events.c.tenant == reference).limit(1)
            found = set(connection.execute(chains).scalars())
    if reference in found:  # an id wins over a tenant that is named like it
        found = {reference}
    if who.kind != "operator":
        found &= {who.tenant or ""}
    if not found:
        raise missing
    return str(found.pop())


def get(ledger: Ledger, tenant: str, *, api_key: ApiKey | None = None) -> Tenant:
    """Return a tenant by its id. api_key: the one to tell in this answer. Raises NotFoundError."""
    with ledger.reading() as connection:
        row = connection.execute(_live().where(db.tenants.c.id == tenant)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such tenant")
    return _view(row, api_key)


def every(ledger: Ledger) -> list[Tenant]:
    """Return all tenants by name; for the operator."""
    with ledger.reading() as connection:
        return [_view(row) for row in connection.execute(_live().order_by(db.tenants.c.name))]


def set_state(ledger: Ledger, who: Principal, tenant: str, state: TenantState) -> Tenant:
    """Suspend or resume a tenant; does nothing when it is so already. Raises NotFoundError."""
    with ledger.changing() as transaction:
        changed = transaction.connection.execute(
            db.tenants.update()
            .where(db.tenants.c.id == tenant, db.tenants.c.state.not_in([_DELETING, state.value]))
            .values(state=state.value)
        ).rowcount
        if changed:
            action = "tenant.suspend" if state is TenantState.SUSPENDED else "tenant.resume"
            transaction.note(actor(who), action, tenant=tenant, resource="tenant")
    return get(ledger, tenant)


def delete(ledger: Ledger, who: Principal, tenant: str) -> None:
    """Mark a tenant for deletion: keys stop, the name is free, the reconciler does the rest.

    Raises NotFoundError.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = connection.execute(_live().where(db.tenants.c.id == tenant)).one_or_none()
        if row is None:
            raise NotFoundError("there is no such tenant")
        connection.execute(
            db.tenants.update().where(db.tenants.c.id == tenant).values(state=_DELETING, name=None)
        )
        transaction.note(actor(who), "tenant.delete", tenant=tenant, resource=f"tenants/{row.name}")


def forget(ledger: Ledger, tenant: str) -> bool:
    """Delete the rows of a tenant whose runtime is gone; say whether its files may go.

    Events and usage stay: what happened and what is owed outlive the tenant, unless it is erased
    (see service.erasures).
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        rows = connection.execute(
            sa.select(db.tenants.c.state).where(db.tenants.c.id == tenant)
        ).scalars()
        if list(rows) != [_DELETING]:
            return False
        digests = connection.execute(
            sa.select(db.versions.c.digest).where(db.versions.c.tenant == tenant)
        ).scalars()
        named = set(digests)
        erasures.removed(transaction, tenant, holdings.remove(connection, tenant), named)
        transaction.note("reconciler", "tenant.gone", tenant=tenant, resource="tenant")
        touches.forget(connection)
    return True


def _live() -> sa.Select[Any]:
    return (
        sa.select(db.tenants, db.runtimes.c.status)
        .join_from(db.tenants, db.runtimes)
        .where(db.tenants.c.state != _DELETING)
    )


def _view(row: Any, api_key: ApiKey | None = None) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        plan=row.plan,
        state=TenantState(row.state),
        created_at=row.created_at,
        default_model=row.default_model or STANDARD,
        runtime=runtimes.read_status(row.status),
        api_key=api_key,
        release=row.release,
    )
