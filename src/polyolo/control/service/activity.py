"""When each tenant was last used and how busy it is: what decides who sleeps and who gets more.

Not a change of what anybody should do, so it has no revision and no event of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.scaling import Demand
from polyolo.control.service.ledger import Ledger, actor
from polyolo.control.windows import read, within
from polyolo.errors import NotFoundError
from polyolo.resources import Schedule
from polyolo.types import Plan, Principal

_FRESH_S = 3.0
"""Age at which a gateway's report no longer counts: it reports every second while there is
anything to report, and is gone or idle otherwise."""


def report(ledger: Ledger, gateway: str, in_flight: Mapping[str, float]) -> None:
    """Note who is in use. in_flight: requests, averaged over the last second, by tenant."""
    if not in_flight:
        return
    runtime = db.runtimes.c
    with ledger.changing() as transaction:
        now = transaction.now
        rows = transaction.connection.execute(
            sa.select(runtime.tenant, runtime.load).where(runtime.tenant.in_(in_flight))
        ).all()
        for row in rows:
            load = {name: said for name, said in (row.load or {}).items() if _fresh(said, now)}
            load[gateway] = [round(in_flight[row.tenant], 3), now]
            transaction.connection.execute(
                db.runtimes.update()
                .where(runtime.tenant == row.tenant)
                .values(used_at=now, load=load)
            )


def wanted(ledger: Ledger, tenant: str, *, tell: bool) -> None:
    """Note that a tenant's runtime is to be awake. tell: other control planes, too."""
    with ledger.changing() as transaction:
        transaction.connection.execute(
            db.runtimes.update()
            .where(db.runtimes.c.tenant == tenant)
            .values(used_at=transaction.now)
        )
        if tell:
            transaction.touch(tenant)


def demand(row: Any, plan: Plan, now: float) -> Demand:
    """Return what is asked of a runtime. row: of the runtimes; now: unix seconds."""
    said = [one for one in (row.load or {}).values() if _fresh(one, now)]
    awake, changes_in = within(row.windows or (), now)
    return Demand(
        least=max(plan.min_replicas, int(awake)),
        most=plan.max_replicas,
        changes_in=changes_in,
        idle_s=max(plan.idle_s, _FRESH_S),  # sooner, gateways' word may still be on its way
        used_at=row.used_at,
        in_flight=sum(one[0] for one in said),
    )


def schedule(ledger: Ledger, tenant: str) -> Schedule:
    """Return when a tenant's runtime is kept awake. Raises NotFoundError."""
    of_tenant = sa.select(db.runtimes.c.windows).where(db.runtimes.c.tenant == tenant)
    with ledger.reading() as connection:
        row = connection.execute(of_tenant).one_or_none()
    if row is None:
        raise NotFoundError("there is no such tenant")
    return Schedule(windows=tuple(row.windows or ()))


def set_schedule(ledger: Ledger, who: Principal, tenant: str, windows: Sequence[str]) -> Schedule:
    """Keep a runtime awake in these windows and no others.

    Raises NotFoundError, InvalidValueError for what is no window.
    """
    for window in windows:
        read(window)
    with ledger.changing() as transaction:
        changed = transaction.connection.execute(
            db.runtimes.update()
            .where(db.runtimes.c.tenant == tenant)
            .values(windows=list(windows) or None)
        ).rowcount
        if not changed:
            raise NotFoundError("there is no such tenant")
        transaction.note(
            actor(who),
            "runtime.schedule",
            tenant=tenant,
            resource="runtime",
            detail=", ".join(windows) or "none",
        )
    return schedule(ledger, tenant)


def _fresh(said: Any, now: float) -> bool:
    return bool(abs(now - said[1]) < _FRESH_S)
