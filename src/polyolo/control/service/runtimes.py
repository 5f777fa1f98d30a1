"""What each runtime should be, and what it was last seen to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db, plans
from polyolo.control.decide import Desired, Wanted
from polyolo.control.scaling import Demand
from polyolo.control.service import activity, releases, standard
from polyolo.control.service.ledger import Ledger
from polyolo.control.spec import runtime_spec
from polyolo.errors import NotFoundError
from polyolo.types import Phase, Plan, RuntimeSpec, RuntimeStatus

Mounted = Callable[[sa.Connection, str], str]
"""Returns the uri of the storage of its own that a tenant's runtime mounts; empty for none."""

_WANTED = {"active": Wanted.RUNNING, "suspended": Wanted.STOPPED, "deleting": Wanted.GONE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One runtime's row: desired beside observed."""

    desired: Desired
    recorded: RuntimeStatus
    demand: Demand


def read_status(stored: Any) -> RuntimeStatus:
    """Return the status in a row's JSON."""
    return msgspec.convert(stored, RuntimeStatus)


def blank(tenant: str, phase: Phase) -> dict[str, Any]:
    """Return the JSON of a status in which nothing has been observed yet."""
    status: dict[str, Any] = msgspec.to_builtins(RuntimeStatus(tenant=tenant, phase=phase))
    return status


def every(ledger: Ledger, offered: Sequence[Plan]) -> dict[str, Standing]:
    """Return the standing of all runtimes, by tenant. offered: all plans."""
    with ledger.reading() as connection:
        rows = connection.execute(_standings()).all()
    now = ledger.clock()
    return {row.tenant: _standing(row, offered, now) for row in rows}


def standing(ledger: Ledger, tenant: str, offered: Sequence[Plan]) -> Standing | None:
    """Return one runtime's standing; None when the tenant is no more."""
    row = _row(ledger, tenant)
    return None if row is None else _standing(row, offered, ledger.clock())


def status(ledger: Ledger, tenant: str) -> RuntimeStatus:
    """Return what a tenant's runtime was last seen to be; raise NotFoundError without one."""
    row = _row(ledger, tenant)
    if row is None:
        raise NotFoundError("there is no such tenant")
    return read_status(row.status)


def spec(
    ledger: Ledger,
    tenant: str,
    *,
    locate: Callable[[str, str], str],
    mounted: Mounted,
    offered: Sequence[Plan],
) -> RuntimeSpec:
    """Return the desired state as the document for the runtime.

    locate: where the file of a tenant with a digest is read. offered: all plans. Raises
    NotFoundError.
    """
    with ledger.reading() as connection:
        owner = connection.execute(
            sa.select(db.tenants, db.runtimes.c.generation)
            .join_from(db.tenants, db.runtimes)
            .where(db.tenants.c.id == tenant)
        ).one_or_none()
        if owner is None:
            raise NotFoundError("there is no such tenant")
        models = connection.execute(sa.select(db.models).where(db.models.c.tenant == tenant)).all()
        versions = connection.execute(
            sa.select(db.versions, *(db.artifacts.c[name] for name in ("family", "size", "uri")))
            .join_from(db.versions, db.artifacts)
            .where(db.versions.c.tenant == tenant)
        ).all()
        pictures: dict[str, list[str]] = {}
        golden = sa.select(db.golden).where(db.golden.c.tenant == tenant)
        for row in connection.execute(golden.order_by(db.golden.c.number)):
            pictures.setdefault(row.model, []).append(row.digest)
        return runtime_spec(
            owner,
            owner.generation,
            models,
            versions,
            standard.row(connection),
            pictures,
            locate,
            plans.effective(plans.named(owner.plan, offered), plans.stored(owner.limits)),
            releases.of_tenant(connection, owner),
            mounted(connection, tenant) if owner.storage else "",
        )


def record(ledger: Ledger, seen: dict[str, RuntimeStatus]) -> None:
    """Keep what was observed; only differences are written, and told."""
    with ledger.changing() as transaction:
        connection = transaction.connection
        rows = connection.execute(_standings().where(db.runtimes.c.tenant.in_(seen))).all()
        changed = []
        for row in rows:
            before, after = read_status(row.status), seen[row.tenant]
            if before == after:
                continue
            changed.append({"whose": row.tenant, "status": msgspec.to_builtins(after)})
            if _apart_from_rollouts(before) == _apart_from_rollouts(after):
                continue  # counts go on all the time; no gateway needs to know
            lost = after.phase is Phase.READY and after.reason and not before.reason
            if before.phase != after.phase or lost:
                transaction.note(
                    "reconciler",
                    "runtime.copy-failed" if lost else f"runtime.{after.phase}",
                    tenant=row.tenant,
                    resource="runtime",
                    detail=after.reason,
                )
            transaction.touch(row.tenant)
        if changed:  # all of them, after a start
            own = db.runtimes.c.tenant == sa.bindparam("whose")
            connection.execute(db.runtimes.update().where(own), changed)


def _apart_from_rollouts(status: RuntimeStatus) -> RuntimeStatus:
    models = tuple(replace(model, rollout=None) for model in status.models)
    return replace(status, models=models)


def private(found: RuntimeStatus) -> RuntimeStatus:
    """Return the status as a tenant may see it: without where the platform reaches it."""
    return replace(found, endpoints=())


def _standings() -> sa.Select[Any]:
    return sa.select(
        db.runtimes, db.tenants.c.state, db.tenants.c.plan, db.tenants.c.limits
    ).join_from(db.runtimes, db.tenants)


def _row(ledger: Ledger, tenant: str) -> Any:
    with ledger.reading() as connection:
        return connection.execute(_standings().where(db.runtimes.c.tenant == tenant)).one_or_none()


def _standing(row: Any, offered: Sequence[Plan], now: float) -> Standing:
    plan = plans.effective(plans.named(row.plan, offered), plans.stored(row.limits))
    return Standing(
        desired=Desired(tenant=row.tenant, wanted=_WANTED[row.state], generation=row.generation),
        recorded=read_status(row.status),
        demand=activity.demand(row, plan, now),
    )
