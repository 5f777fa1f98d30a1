"""Versions on trial: begun, followed by what their runtime reports, aborted.

The column `rollout` of a model holds the last one: the record that its tenant sees, and beside it
the generation that began it and what earlier starts of the runtime have shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db, verdict
from polyolo.control.service import modelrows
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import ConflictError, InvalidValueError
from polyolo.rollouts import Rollout, RolloutRecord, RolloutRule, RolloutStatus, added
from polyolo.types import Principal, RuntimeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What is in the column."""

    record: RolloutRecord
    generation: int
    """Of the spec that began it."""
    before: RolloutStatus = field(default_factory=RolloutStatus)
    """What starts of the runtime have shown that are over."""
    last: RolloutStatus = field(default_factory=RolloutStatus)
    """What the present one has shown."""


def record_of(row: Any) -> RolloutRecord | None:
    """Return the last rollout of a model's row, running or not."""
    return None if row.rollout is None else _read(row).record


def running(row: Any) -> RolloutRecord | None:
    """Return the rollout that a model's row has under way."""
    record = record_of(row)
    return record if record is not None and record.state == "running" else None


def for_spec(row: Any) -> Rollout | None:
    """Return what the runtime is told of a model's rollout."""
    record = running(row)
    if record is None:
        return None
    return Rollout(
        version=record.version,
        share=record.share,
        shadow=record.shadow,
        since=_read(row).generation,
    )


def ended(row: Any, now: float, state: str, reason: str) -> dict[str, Any] | None:
    """Return the column's value with its rollout ended; as it is where none is under way."""
    if running(row) is None:
        value: dict[str, Any] | None = row.rollout
        return value
    stored = _read(row)
    record = replace(stored.record, state=state, reason=reason[:1000], ended_at=now)
    return _column(replace(stored, record=record))


def begin(
    ledger: Ledger,
    who: Principal,
    tenant: str,
    name: str,
    number: int,
    *,
    share: float,
    shadow: bool = False,
    rule: RolloutRule | None = None,
) -> None:
    """Put a version on trial, or change the share and the rule of one that is.

    Its counts go on then. Does nothing when all is as it should be. Raises InvalidValueError
    naming field and range, NotFoundError, ConflictError.
    """
    try:
        Rollout(version=number, share=share)
    except ValueError as error:
        raise InvalidValueError(str(error)) from None
    if rule is not None and rule.agreement is not None and not shadow:
        raise InvalidValueError(
            "agreement: only a shadow's boxes are compared with the current version's; ask for a "
            "shadow, or leave agreement out"
        )
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = modelrows.own(connection, tenant, name)
        version = modelrows.version(connection, tenant, name, number)
        if row.current == number:
            raise ConflictError(f"{name}:{number} is in use already")
        if version.taken_out:
            raise ConflictError(f"{name}:{number} was taken out of use: {version.taken_out}")
        known = running(row)
        if known is not None and (known.version, known.shadow) == (number, shadow):
            if (known.share, known.rule) == (share, rule):
                return
            stored = replace(_read(row), record=replace(known, share=share, rule=rule))
        else:
            stored = _Stored(
                record=RolloutRecord(
                    version=number,
                    share=share,
                    shadow=shadow,
                    rule=rule,
                    began_at=transaction.now,
                    began_by=actor(who),
                ),
                generation=_next_generation(connection, tenant),
            )
        modelrows.update(transaction, row, rollout=_column(stored))
        detail = f"{'shadow' if shadow else 'canary'} share {share:g}"
        if rule is not None:
            detail += f" {verdict.worded(rule)}"
        what = f"{name}:{number}"
        modelrows.changed(transaction, actor(who), "model.rollout", tenant, what, detail)


def abort(ledger: Ledger, by: str, tenant: str, name: str, reason: str = "") -> None:
    """End a model's rollout; does nothing where none is under way. by: the event's actor.

    Raises NotFoundError.
    """
    with ledger.changing() as transaction:
        row = modelrows.own(transaction.connection, tenant, name)
        _abort(transaction, row, by, reason)


def follow(ledger: Ledger, tenant: str, status: RuntimeStatus) -> list[tuple[str, int, str]]:
    """Keep what a runtime shows of its rollouts, and end those that its rule or a crash ends.

    Returns (model, version, reason) of those that are good enough to be put in use.
    """
    good: list[tuple[str, int, str]] = []
    shown = {model.name: model for model in status.models if model.rollout is not None}
    if not shown:
        return good
    with ledger.changing() as transaction:
        rows = transaction.connection.execute(
            sa.select(db.models).where(
                db.models.c.tenant == tenant, db.models.c.name.in_(shown.keys())
            )
        ).all()
        for row in rows:
            seen = shown[row.name]
            record = running(row)
            if record is None or record.version != seen.version or seen.rollout is None:
                continue
            if status.observed_generation < _read(row).generation:
                continue  # it tells of an earlier one
            record = _keep(transaction, row, seen.rollout)
            end = verdict.judged(record, seen)
            if end is not None and end.promote:
                good.append((row.name, record.version, end.reason))
            elif end is not None:
                fresh = modelrows.own(transaction.connection, tenant, row.name)
                _abort(transaction, fresh, "platform", end.reason)
    return good


def _keep(transaction: Transaction, row: Any, shown: RolloutStatus) -> RolloutRecord:
    stored = _read(row)
    if shown != stored.last:
        if shown.seen < stored.last.seen:  # the runtime was started again
            stored = replace(stored, before=added(stored.before, stored.last))
        total = added(stored.before, shown)
        stored = replace(stored, last=shown, record=replace(stored.record, status=total))
        modelrows.update(transaction, row, rollout=_column(stored))
    return stored.record


def _abort(transaction: Transaction, row: Any, by: str, reason: str) -> None:
    record = running(row)
    if record is None:
        return
    modelrows.update(
        transaction, row, rollout=ended(row, transaction.now, "aborted", reason or "by hand")
    )
    what = f"{row.name}:{record.version}"
    modelrows.changed(transaction, by, "model.rollout-abort", row.tenant, what, reason)


def _next_generation(connection: sa.Connection, tenant: str) -> int:
    generation = connection.execute(
        sa.select(db.runtimes.c.generation).where(db.runtimes.c.tenant == tenant)
    ).scalar_one()
    return int(generation) + 1


def _read(row: Any) -> _Stored:
    return msgspec.convert(row.rollout, _Stored)


def _column(stored: _Stored) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(stored)
    return value
