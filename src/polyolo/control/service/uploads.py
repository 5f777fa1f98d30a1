"""Model files on their way in: from the first byte to a version, or to the reason why not.

receiving (bytes come in) → received → checking → ready (it is a version now) or refused. Who has
received the last byte notes it; whoever reconciles checks. A row is written before the first byte
is stored and deleted before the last one is, so that what is stored without a row is rubbish.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service import models
from polyolo.control.service.artifacts import Artifact
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import (
    ConflictError,
    InvalidValueError,
    ModelRefusedError,
    NotFoundError,
    PolyoloError,
    RateLimitedError,
    TooLargeError,
)
from polyolo.resources import Upload
from polyolo.types import Plan, Principal

RECEIVING, RECEIVED, CHECKING, READY, REFUSED = (
    "receiving",
    "received",
    "checking",
    "ready",
    "refused",
)
MOST_OPEN = 16
"""Uploads of a tenant that are not decided yet."""
MOST_FILES = 4
"""Files of the plan's largest size that they may hold together."""
EXPIRES_S = 24 * 3600.0
"""Seconds after its last byte that an upload may be resumed."""
KEPT_S = 7 * 24 * 3600.0
"""Seconds that the outcome of an upload can be looked up."""
MOST_TRIES = 3
"""Checks that may end without a word, with the platform itself for instance, before the file is
refused: it may be what ended them."""

_OPEN = (RECEIVING, RECEIVED, CHECKING)


def begin(
    ledger: Ledger,
    who: Principal,
    tenant: str,
    model: str,
    plan: Plan,
    *,
    size: int | None = None,
    sha256: str = "",
    classes: Sequence[str] = (),
    uri: str = "",
) -> Upload:
    """Open an upload. size: bytes, None where they are not told. sha256: of the file, if told.

    uri: where the file is in the tenant's own storage; then nothing is to be sent.

    Raises what `models.check_push` does, TooLargeError, InvalidValueError and RateLimitedError.
    """
    models.check_push(ledger, tenant, model, plan)
    if size is not None and size > plan.max_model_bytes:
        raise TooLargeError(
            f"a model file may have {plan.max_model_bytes:,} bytes in the plan {plan.name}"
        )
    if size is not None and size < 1:
        raise InvalidValueError("size: a model file has at least one byte")
    row: dict[str, Any] = {
        "id": names.key_id(),
        "tenant": tenant,
        "model": model,
        "size": size,
        "sha256": sha256.lower(),
        "classes": list(classes),
        "uri": uri,
        "state": RECEIVED if uri else RECEIVING,
        "code": "",
        "reason": "",
        "version": None,
        "tries": 0,
        "created_by": actor(who),
    }
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        mine = db.uploads.c.tenant == tenant
        sizes = sa.select(db.uploads.c.size).where(mine, db.uploads.c.state.in_(_OPEN))
        held = [one or plan.max_model_bytes for one in connection.execute(sizes).scalars()]
        held.append(size or plan.max_model_bytes)
        if len(held) > MOST_OPEN or sum(held) > MOST_FILES * plan.max_model_bytes:
            raise RateLimitedError(
                f"{len(held) - 1} uploads are under way, which is all that may be; wait for one to "
                "be decided, or cancel one",
                retry_after=5.0,
            )
        connection.execute(db.uploads.insert().values(**row, created_at=now, touched_at=now))
        transaction.note(row["created_by"], "upload.begin", tenant=tenant, resource=_named(row))
    return get(ledger, tenant, str(row["id"]))


def get(ledger: Ledger, tenant: str, identifier: str) -> Upload:
    """Return one upload of a tenant. Raises NotFoundError."""
    with ledger.reading() as connection:
        row = connection.execute(sa.select(db.uploads).where(_is(tenant, identifier))).one_or_none()
    if row is None:
        raise _missing(identifier)
    return _view(row)


def every(ledger: Ledger, tenant: str) -> list[Upload]:
    """Return a tenant's uploads, the newest first."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.uploads)
            .where(db.uploads.c.tenant == tenant)
            .order_by(db.uploads.c.created_at.desc(), db.uploads.c.id)
        ).all()
    return [_view(row) for row in rows]


def touch(ledger: Ledger, tenant: str, identifier: str) -> None:
    """Keep an upload from expiring: bytes have come. Raises NotFoundError, ConflictError."""
    with ledger.changing() as transaction:
        _change(transaction, tenant, identifier, (RECEIVING,))


def complete(ledger: Ledger, tenant: str, identifier: str, size: int) -> None:
    """Note that all bytes have come; does nothing when it is noted already.

    Raises NotFoundError, ConflictError.
    """
    with ledger.changing() as transaction:
        states = (RECEIVING, RECEIVED)
        row = _change(transaction, tenant, identifier, states, state=RECEIVED, size=size)
        transaction.note(
            row.created_by,
            "upload.received",
            tenant=tenant,
            resource=_named(row),
            detail=f"{size} bytes",
        )


def cancel(ledger: Ledger, who: Principal, tenant: str, identifier: str) -> None:
    """Forget an upload; its bytes may go. Raises NotFoundError, ConflictError while checked."""
    with ledger.changing() as transaction:
        states = (RECEIVING, RECEIVED, READY, REFUSED)
        row = _change(transaction, tenant, identifier, states)
        transaction.connection.execute(db.uploads.delete().where(_is(tenant, identifier)))
        if row.state in _OPEN:
            transaction.note(actor(who), "upload.cancel", tenant=tenant, resource=_named(row))


def due(ledger: Ledger, tenant: str) -> Upload | None:
    """Return the tenant's upload that is to be checked next; None when there is none."""
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(db.uploads)
            .where(db.uploads.c.tenant == tenant, db.uploads.c.state.in_((RECEIVED, CHECKING)))
            .order_by(db.uploads.c.touched_at, db.uploads.c.id)
            .limit(1)
        ).one_or_none()
    return None if row is None else _view(row)


def begin_check(ledger: Ledger, upload: Upload, tenant: str) -> None:
    """Note that a file is being checked, once more. Raises ModelRefusedError for the last time."""
    with ledger.changing() as transaction:
        row = _change(transaction, tenant, upload.id, (RECEIVED, CHECKING), state=CHECKING)
        if row.tries >= MOST_TRIES:
            raise ModelRefusedError(
                f"checking the file broke off {row.tries} times without a result; "
                "is it a plain ONNX export of a YOLO model?"
            )
        tries = db.uploads.c.tries + 1
        transaction.connection.execute(
            db.uploads.update().where(_is(tenant, upload.id)).values(tries=tries)
        )
        transaction.touch(tenant)


def accept(ledger: Ledger, upload: Upload, artifact: Artifact, plan: Plan) -> None:
    """Make a checked upload a version of its model. Raises what `models.push` does."""
    with ledger.changing() as transaction:
        tenant = artifact.tenant
        row = _change(transaction, tenant, upload.id, (CHECKING,), state=READY)
        number = models.push(transaction, row.created_by, upload.model, artifact, plan)
        transaction.connection.execute(
            db.uploads.update().where(_is(tenant, upload.id)).values(version=number)
        )


def put_off(ledger: Ledger, upload: Upload, tenant: str) -> None:
    """Note that a check could not be made, through no fault of the file."""
    with ledger.changing() as transaction:
        transaction.connection.execute(
            db.uploads.update().where(_is(tenant, upload.id)).values(tries=db.uploads.c.tries - 1)
        )


def refuse(ledger: Ledger, upload: Upload, tenant: str, error: PolyoloError) -> None:
    """Note why a file does not become a version, unless its tenant was deleted meanwhile."""
    with suppress(NotFoundError), ledger.changing() as transaction:
        row = _change(
            transaction,
            tenant,
            upload.id,
            (RECEIVED, CHECKING),
            state=REFUSED,
            code=error.code,
            reason=error.detail,
        )
        transaction.note(
            row.created_by,
            "upload.refused",
            tenant=tenant,
            resource=_named(row),
            detail=error.detail,
        )


def expire(ledger: Ledger) -> None:
    """Forget uploads that nobody has gone on with, and outcomes of long ago."""
    with ledger.changing() as transaction:
        row, now = db.uploads.c, transaction.now
        old = sa.or_(
            (row.state == RECEIVING) & (row.touched_at < now - EXPIRES_S),
            row.state.in_((READY, REFUSED)) & (row.touched_at < now - KEPT_S),
        )
        transaction.connection.execute(db.uploads.delete().where(old))


def open_ones(ledger: Ledger) -> dict[str, str]:
    """Return the tenant of every upload whose bytes are needed, by its id."""
    with ledger.reading() as connection:
        row = db.uploads.c
        found = connection.execute(sa.select(row.id, row.tenant).where(row.state.in_(_OPEN)))
        return {one.id: one.tenant for one in found}


def waiting(ledger: Ledger) -> set[str]:
    """Return the tenants that have something to be checked."""
    with ledger.reading() as connection:
        row = db.uploads.c
        found = sa.select(row.tenant).where(row.state.in_((RECEIVED, CHECKING)))
        return set(connection.execute(found).scalars())


def _change(
    transaction: Transaction, tenant: str, identifier: str, states: Sequence[str], **values: Any
) -> Any:
    """Change an upload that is in one of these states, and return its row as it was."""
    connection = transaction.connection
    row = connection.execute(sa.select(db.uploads).where(_is(tenant, identifier))).one_or_none()
    if row is None:
        raise _missing(identifier)
    if row.state not in states:
        raise ConflictError(f"this upload is {row.state}")
    connection.execute(
        db.uploads.update()
        .where(_is(tenant, identifier))
        .values(touched_at=transaction.now, **values)
    )
    return row


def _is(tenant: str, identifier: str) -> sa.ColumnElement[bool]:
    return (db.uploads.c.tenant == tenant) & (db.uploads.c.id == identifier)


def _named(row: Any) -> str:
    model, identifier = (row["model"], row["id"]) if isinstance(row, dict) else (row.model, row.id)
    return f"uploads/{identifier} of {model}"


def _missing(identifier: str) -> NotFoundError:
    return NotFoundError(f"there is no upload {identifier!r}: it was cancelled, or has expired")


def _view(row: Any) -> Upload:
    return Upload(
        id=row.id,
        model=row.model,
        state=row.state,
        size=row.size,
        sha256=row.sha256,
        classes=tuple(row.classes),
        uri=row.uri,
        code=row.code,
        reason=row.reason,
        version=row.version,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.touched_at + (EXPIRES_S if row.state == RECEIVING else KEPT_S),
    )
