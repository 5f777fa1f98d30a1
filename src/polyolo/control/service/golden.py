"""A model's golden pictures: what its versions are compared on before one is put in use.

A row is written before the picture is stored and deleted before it is: what is stored without a
row is rubbish, and a row without its picture asks for it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.comparejob import ExpectedBox
from polyolo.control import db
from polyolo.control.secrets import Place
from polyolo.control.service import modelrows
from polyolo.control.service.ledger import Ledger, actor
from polyolo.control.service.vault import Vault
from polyolo.errors import InvalidValueError, NotFoundError, QuotaUsedUpError
from polyolo.resources import GoldenPicture
from polyolo.types import Principal

MOST = 100
"""Pictures of a model: more would not be looked at within a comparison's time."""
MOST_BYTES = 64 << 20
"""Of all pictures of a model."""
MOST_BOXES = 1000
"""Expected in a picture: what an answer may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A golden picture as it is compared on."""

    number: int
    digest: str
    size: int
    expected: tuple[ExpectedBox, ...] | None


def put(
    ledger: Ledger,
    vault: Vault,
    who: Principal,
    tenant: str,
    name: str,
    golden: Golden,
) -> None:
    """Add a picture to a model's, or put it in the place of the one with this number.

    Raises InvalidValueError, QuotaUsedUpError, NotFoundError.
    """
    if not 1 <= golden.number <= MOST:
        raise InvalidValueError(f"a golden picture has a number from 1 to {MOST}")
    _check_boxes(golden.expected)
    with ledger.changing() as transaction:
        connection = transaction.connection
        modelrows.own(connection, tenant, name)
        others = db.golden.c.number != golden.number
        sizes = sa.select(sa.func.sum(db.golden.c.size)).where(_of(tenant, name), others)
        if (connection.execute(sizes).scalar() or 0) + golden.size > MOST_BYTES:
            raise QuotaUsedUpError(
                f"the golden pictures of a model may have {MOST_BYTES:,} bytes together; send "
                "smaller ones, or delete some"
            )
        sealed = None
        if golden.expected is not None:
            text = msgspec.json.encode(golden.expected).decode()
            sealed = vault.seal(connection, text, place(tenant, name, golden.number))
        connection.execute(db.golden.delete().where(_is(tenant, name, golden.number)))
        connection.execute(
            db.golden.insert().values(
                tenant=tenant,
                model=name,
                number=golden.number,
                digest=golden.digest,
                size=golden.size,
                expected=sealed,
                created_at=transaction.now,
            )
        )
        known = "" if golden.expected is None else f", {len(golden.expected)} boxes expected"
        transaction.note(
            actor(who),
            "model.golden",
            tenant=tenant,
            resource=f"models/{name}/golden/{golden.number}",
            detail=f"{golden.size} bytes{known}",
        )


def every(ledger: Ledger, vault: Vault, tenant: str, name: str) -> list[GoldenPicture]:
    """Return a model's golden pictures, without the pictures. Raises NotFoundError."""
    with ledger.reading() as connection:
        modelrows.own(connection, tenant, name)
        rows = connection.execute(_rows(tenant, name)).all()
        return [
            GoldenPicture(
                number=row.number,
                size=row.size,
                expected=None
                if (boxes := _expected(connection, vault, row)) is None
                else len(boxes),
                created_at=row.created_at,
            )
            for row in rows
        ]


def read(connection: sa.Connection, vault: Vault, tenant: str, name: str) -> list[Golden]:
    """Return a model's golden pictures with what is expected in them."""
    return [
        Golden(
            number=row.number,
            digest=row.digest,
            size=row.size,
            expected=_expected(connection, vault, row),
        )
        for row in connection.execute(_rows(tenant, name)).all()
    ]


def delete(ledger: Ledger, who: Principal, tenant: str, name: str, number: int) -> None:
    """Delete a golden picture. Raises NotFoundError."""
    with ledger.changing() as transaction:
        connection = transaction.connection
        modelrows.own(connection, tenant, name)
        deleted = connection.execute(db.golden.delete().where(_is(tenant, name, number))).rowcount
        if not deleted:
            raise NotFoundError(f"{name} has no golden picture {number}")
        transaction.note(
            actor(who),
            "model.golden-delete",
            tenant=tenant,
            resource=f"models/{name}/golden/{number}",
        )


def digests(connection: sa.Connection, tenant: str, name: str | None = None) -> set[str]:
    """Return what pictures of a tenant, or of one of its models, are stored under."""
    mine = db.golden.c.tenant == tenant if name is None else _of(tenant, name)
    return set(connection.execute(sa.select(db.golden.c.digest).where(mine)).scalars())


def digest_of(ledger: Ledger, tenant: str, name: str, number: int) -> list[str]:
    """Return what a picture is stored under; none for one that is not there.

    Raises NotFoundError for a model that is not there.
    """
    with ledger.reading() as connection:
        modelrows.own(connection, tenant, name)
        mine = sa.select(db.golden.c.digest).where(_is(tenant, name, number))
        return list(connection.execute(mine).scalars())


def unneeded(ledger: Ledger, tenant: str, those: Sequence[str]) -> list[str]:
    """Return those of the digests that no golden picture of the tenant has any more."""
    with ledger.reading() as connection:
        needed = digests(connection, tenant)
    return [digest for digest in those if digest not in needed]


def _check_boxes(boxes: Sequence[ExpectedBox] | None) -> None:
    if boxes is not None and len(boxes) > MOST_BOXES:
        raise InvalidValueError(f"expected: at most {MOST_BOXES} boxes, not {len(boxes)}")
    for box in boxes or ():
        left, top, right, bottom = box.bbox
        if not (0 <= left < right < 1e6 and 0 <= top < bottom < 1e6):  # also refuses NaN
            raise InvalidValueError(
                "expected: a bbox is x1, y1, x2, y2 in pixels of the picture, with x1 < x2 and "
                f"y1 < y2, not {list(box.bbox)}"
            )


def _expected(connection: sa.Connection, vault: Vault, row: Any) -> tuple[ExpectedBox, ...] | None:
    if row.expected is None:
        return None
    text = vault.unseal(connection, row.expected, place(row.tenant, row.model, row.number))
    return msgspec.json.decode(text, type=tuple[ExpectedBox, ...])


def place(tenant: str, name: str, number: int) -> Place:
    """Return where the expected boxes of a picture stand."""
    return Place(table="golden", column="expected", row=f"{name}/{number}", tenant=tenant)


def _rows(tenant: str, name: str) -> sa.Select[Any]:
    return sa.select(db.golden).where(_of(tenant, name)).order_by(db.golden.c.number)


def _of(tenant: str, name: str) -> sa.ColumnElement[bool]:
    return (db.golden.c.tenant == tenant) & (db.golden.c.model == name)


def _is(tenant: str, name: str, number: int) -> sa.ColumnElement[bool]:
    return _of(tenant, name) & (db.golden.c.number == number)
