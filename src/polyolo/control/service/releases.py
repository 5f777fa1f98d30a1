"""Which release of the runtimes' program each tenant is on: pinned, or moved ring by ring.

The platform has a release, by default its own, and may be on its way to a next one: then a share
of the tenants is on that already, chosen by their ids, so that a larger share holds all of a
smaller one. A tenant that was pinned stays where it was put.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import InvalidValueError, NotFoundError
from polyolo.resources import Release
from polyolo.types import Principal

OWN = ""
"""The release that the platform itself is of."""


def of_tenant(connection: sa.Connection, owner: Any) -> str:
    """Return the release that a tenant's runtime is to be of. owner: the tenant's row."""
    return _of(owner.release, owner.id, connection.execute(sa.select(db.platform)).one())


def every(ledger: Ledger, known: Collection[str]) -> list[Release]:
    """Return the releases that there are. known: the names of those beside the platform's own."""
    with ledger.reading() as connection:
        platform = connection.execute(sa.select(db.platform)).one()
        owners = connection.execute(sa.select(db.tenants.c.id, db.tenants.c.release)).all()
    on = [_of(owner.release, owner.id, platform) for owner in owners]
    pinned = [owner.release for owner in owners]
    return [
        Release(
            name=name,
            tenants=on.count(name),
            pinned=pinned.count(name),
            default=name == platform.release,
            share=platform.next_share if name == platform.next_release else 0.0,
        )
        for name in (OWN, *sorted(known))
    ]


def pin(
    ledger: Ledger, who: Principal, tenant: str, release: str | None, known: Collection[str]
) -> None:
    """Put one tenant on a release, or have it follow the platform (None).

    known: the names of those beside the platform's own. Raises InvalidValueError, NotFoundError.
    """
    _check(release or OWN, known)
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = connection.execute(
            sa.select(db.tenants).where(db.tenants.c.id == tenant, db.tenants.c.state != "deleting")
        ).one_or_none()
        if row is None:
            raise NotFoundError("there is no such tenant")
        if row.release == release:
            return
        connection.execute(
            db.tenants.update().where(db.tenants.c.id == tenant).values(release=release)
        )
        transaction.new_generation(tenant)
        said = "the platform's" if release is None else release or "the platform's own"
        transaction.note(
            actor(who), "tenant.release", tenant=tenant, resource="tenant", detail=said
        )


def move(
    ledger: Ledger, who: Principal, release: str, share: float, known: Collection[str]
) -> None:
    """Have a share of the tenants that are not pinned on a release, and the others as they were.

    share: 0 to 1. 1 makes it the platform's release; 0 takes everybody back. Raises
    InvalidValueError.
    """
    _check(release, known)
    if not 0.0 <= share <= 1.0:
        raise InvalidValueError(f"share must lie between 0 and 1, not {share}")
    with ledger.changing() as transaction:
        connection = transaction.connection
        before = connection.execute(sa.select(db.platform)).one()
        values: dict[str, Any] = {"next_release": release, "next_share": share}
        if share == 1.0:
            values = {"release": release, "next_release": OWN, "next_share": 0.0}
        elif share == 0.0:
            values = {"next_release": OWN, "next_share": 0.0}
        connection.execute(db.platform.update().values(**values))
        moved = _moved(transaction, before)
        if moved or values.items() - before._mapping.items():  # noqa: SLF001  # its public name
            transaction.note(
                actor(who),
                "release.move",
                tenant=None,
                resource=f"releases/{release or 'own'}",
                detail=f"share {share:g}, {moved} tenants moved",
            )


def _moved(transaction: Transaction, before: Any) -> int:
    connection = transaction.connection
    after = connection.execute(sa.select(db.platform)).one()
    owners = connection.execute(sa.select(db.tenants.c.id, db.tenants.c.release)).all()
    moved = [
        owner.id
        for owner in owners
        if _of(owner.release, owner.id, before) != _of(owner.release, owner.id, after)
    ]
    for tenant in moved:
        transaction.new_generation(tenant)
        transaction.touch(tenant)
    return len(moved)


def _of(pinned: str | None, tenant: str, platform: Any) -> str:
    if pinned is not None:
        return pinned
    if platform.next_share and _place(tenant) < platform.next_share:
        return str(platform.next_release)
    return str(platform.release)


def _place(tenant: str) -> float:
    """Return where a tenant stands between 0 and 1, for ever."""
    digest = hashlib.sha256(tenant.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _check(release: str, known: Collection[str]) -> None:
    if release != OWN and release not in known:
        there = ", ".join(sorted(known)) or "only the platform's own"
        raise InvalidValueError(
            f"release: there is no {release!r} here, but {there}; name one when the platform is "
            "started, as in --release 0.1=/path/to/python"
        )
