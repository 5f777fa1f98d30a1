"""What each runtime should be, and what it was last seen to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.decide import Desired, Wanted
from polyolo.control.service import standard
from polyolo.control.service.ledger import Ledger
from polyolo.control.spec import runtime_spec
from polyolo.errors import NotFoundError
from polyolo.types import Phase, RuntimeSpec, RuntimeStatus

_WANTED = {"active": Wanted.RUNNING, "suspended": Wanted.STOPPED, "deleting": Wanted.GONE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One runtime's row: desired beside observed."""

    desired: Desired
    recorded: RuntimeStatus


def read_status(stored: Any) -> RuntimeStatus:
    """Return the status in a row's JSON."""
    return msgspec.convert(stored, RuntimeStatus)


def blank(tenant: str, phase: Phase) -> dict[str, Any]:
    """Return the JSON of a status in which nothing has been observed yet."""
    status: dict[str, Any] = msgspec.to_builtins(RuntimeStatus(tenant=tenant, phase=phase))
    return status


def every(ledger: Ledger) -> dict[str, Standing]:
    """Return the standing of all runtimes, by tenant."""
    with ledger.reading() as connection:
        rows = connection.execute(_standings()).all()
    return {row.tenant: _standing(row) for row in rows}


def standing(ledger: Ledger, tenant: str) -> Standing | None:
    """Return one runtime's standing; None when the tenant is no more."""
    with ledger.reading() as connection:
        row = connection.execute(_standings().where(db.runtimes.c.tenant == tenant)).one_or_none()
    return _standing(row) if row is not None else None


def status(ledger: Ledger, tenant: str) -> RuntimeStatus:
    """Return what a tenant's runtime was last seen to be; raise NotFoundError without one."""
    found = standing(ledger, tenant)
    if found is None:
        raise NotFoundError("there is no such tenant")
    return found.recorded


def spec(ledger: Ledger, tenant: str, locate: Callable[[str], str]) -> RuntimeSpec:
    """Return the desired state as the document for the runtime.

    locate: where the file with a digest is read. Raises NotFoundError.
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
            sa.select(db.versions, db.artifacts.c.family)
            .join_from(db.versions, db.artifacts)
            .where(db.versions.c.tenant == tenant)
        ).all()
        return runtime_spec(
            owner, owner.generation, models, versions, standard.row(connection), locate
        )


def record(ledger: Ledger, seen: dict[str, RuntimeStatus]) -> None:
    """Keep what was observed; only differences are written, and told."""
    with ledger.changing() as transaction:
        connection = transaction.connection
        rows = connection.execute(_standings().where(db.runtimes.c.tenant.in_(seen))).all()
        for row in rows:
            before, after = read_status(row.status), seen[row.tenant]
            if before == after:
                continue
            connection.execute(
                db.runtimes.update()
                .where(db.runtimes.c.tenant == row.tenant)
                .values(status=msgspec.to_builtins(after))
            )
            if before.phase != after.phase:
                transaction.note(
                    "reconciler",
                    f"runtime.{after.phase}",
                    tenant=row.tenant,
                    resource="runtime",
                    detail=after.reason,
                )
            transaction.touch(row.tenant)


def private(found: RuntimeStatus) -> RuntimeStatus:
    """Return the status as a tenant may see it: without where the platform reaches it."""
    return replace(found, endpoints=())


def _standings() -> sa.Select[Any]:
    return sa.select(
        db.runtimes.c.tenant, db.runtimes.c.generation, db.runtimes.c.status, db.tenants.c.state
    ).join_from(db.runtimes, db.tenants)


def _standing(row: Any) -> Standing:
    desired = Desired(tenant=row.tenant, wanted=_WANTED[row.state], generation=row.generation)
    return Standing(desired=desired, recorded=read_status(row.status))
