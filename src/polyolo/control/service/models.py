"""A tenant's models: pushed, put in use, rolled back, tuned, deleted.

The first model that a tenant pushes becomes its default. When the default model is deleted, the
oldest of those left takes its place; without any, the standard model.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service import runtimes, standard
from polyolo.control.service.artifacts import Artifact, remember
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import (
    ConflictError,
    ForbiddenError,
    InvalidValueError,
    NotFoundError,
    QuotaUsedUpError,
)
from polyolo.resources import Model, ModelVersion
from polyolo.types import STANDARD, DetectionSettings, Plan, Principal, RuntimeStatus


def every(ledger: Ledger, tenant: str) -> list[Model]:
    """Return a tenant's models, oldest first, and the standard one last."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.models)
            .where(db.models.c.tenant == tenant)
            .order_by(db.models.c.created_at, db.models.c.name)
        ).all()
        versions = connection.execute(_versions().where(db.versions.c.tenant == tenant)).all()
        owner = _owner(connection, tenant)
        views = [_view(row, [v for v in versions if v.model == row.name], owner) for row in rows]
        shared = standard.row(connection)
        return views if shared is None else [*views, _standard_view(shared, owner)]


def get(ledger: Ledger, tenant: str, name: str) -> Model:
    """Return one model. Raises NotFoundError."""
    found = next((model for model in every(ledger, tenant) if model.name == name), None)
    if found is None:
        raise _missing(name)
    return found


def version(ledger: Ledger, tenant: str, name: str, number: int) -> ModelVersion:
    """Return one version of a model. Raises NotFoundError."""
    for found in get(ledger, tenant, name).versions:
        if found.version == number:
            return found
    raise _missing(name, number)


def check_push(ledger: Ledger, tenant: str, name: str, plan: Plan) -> None:
    """Raise what `push` would raise whatever the file holds: before it is uploaded."""
    names.checked(name, "model", reserved=STANDARD)
    with ledger.reading() as connection:
        _check_room(connection, tenant, name, plan)


def push(
    ledger: Ledger, who: Principal, tenant: str, name: str, artifact: Artifact, plan: Plan
) -> int:
    """Add a version to a model, the model too if it is new; return the version's number.

    Raises InvalidValueError for the name, QuotaUsedUpError, and NotFoundError for a tenant that
    was deleted meanwhile.
    """
    names.checked(name, "model", reserved=STANDARD)
    with ledger.changing() as transaction:
        connection = transaction.connection
        owner = _owner(connection, tenant)
        _check_room(connection, tenant, name, plan)
        remember(transaction, artifact)
        latest = connection.execute(
            sa.select(sa.func.max(db.versions.c.version)).where(
                db.versions.c.tenant == tenant, db.versions.c.model == name
            )
        ).scalar_one()
        number = (latest or 0) + 1
        if latest is None:
            connection.execute(
                db.models.insert().values(
                    tenant=tenant,
                    name=name,
                    current=1,
                    history=[],
                    settings=msgspec.to_builtins(DetectionSettings()),
                    created_at=transaction.now,
                )
            )
            if owner.default_model is None:
                _set_default(connection, tenant, name)
        connection.execute(
            db.versions.insert().values(
                tenant=tenant,
                model=name,
                version=number,
                digest=artifact.digest,
                classes=list(artifact.facts.classes),
                created_at=transaction.now,
                created_by=actor(who),
            )
        )
        _changed(transaction, who, "model.push", tenant, f"{name}:{number}", artifact.digest)
    return number


def use(ledger: Ledger, who: Principal, tenant: str, name: str, number: int) -> None:
    """Make a version the current one; does nothing when it is. Raises NotFoundError."""
    with ledger.changing() as transaction:
        row = _own(transaction.connection, tenant, name)
        exists = transaction.connection.execute(
            _versions().where(
                db.versions.c.tenant == tenant,
                db.versions.c.model == name,
                db.versions.c.version == number,
            )
        ).one_or_none()
        if exists is None:
            raise _missing(name, number)
        if row.current != number:
            history = [*row.history, row.current]
            _update(transaction, tenant, name, current=number, history=history)
            _changed(transaction, who, "model.use", tenant, f"{name}:{number}")


def rollback(ledger: Ledger, who: Principal, tenant: str, name: str) -> None:
    """Go back to the version that was current before. Raises NotFoundError, ConflictError."""
    with ledger.changing() as transaction:
        row = _own(transaction.connection, tenant, name)
        if not row.history:
            raise ConflictError(f"no version of {name} was current before {name}:{row.current}")
        *history, number = row.history
        _update(transaction, tenant, name, current=number, history=history)
        _changed(transaction, who, "model.rollback", tenant, f"{name}:{number}")


def settings(ledger: Ledger, tenant: str, name: str) -> DetectionSettings:
    """Return a model's own settings. Raises NotFoundError."""
    return get(ledger, tenant, name).settings


def set_settings(
    ledger: Ledger, who: Principal, tenant: str, name: str, changes: dict[str, Any]
) -> None:
    """Change some of a model's settings; None puts a field back to its default.

    Raises InvalidValueError naming field and range, NotFoundError.
    """
    defaults = msgspec.to_builtins(DetectionSettings())
    given = {key: defaults[key] if value is None else value for key, value in changes.items()}
    with ledger.changing() as transaction:
        row = _own(transaction.connection, tenant, name)
        try:
            after = msgspec.convert({**row.settings, **given}, DetectionSettings)
        except ValueError as error:
            raise InvalidValueError(str(error)) from None
        _check_classes(transaction.connection, row, after)
        stored = msgspec.to_builtins(after)
        if stored != row.settings:
            _update(transaction, tenant, name, settings=stored)
            detail = " ".join(f"{key}={value}" for key, value in sorted(given.items()))
            _changed(transaction, who, "model.settings", tenant, name, detail)


def delete(ledger: Ledger, who: Principal, tenant: str, name: str) -> set[str]:
    """Delete a model with its versions; return the digests that they named.

    Raises NotFoundError, and ForbiddenError for the standard model.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        _own(connection, tenant, name)
        owner = _owner(connection, tenant)
        mine = (db.versions.c.tenant == tenant) & (db.versions.c.model == name)
        digests = set(connection.execute(sa.select(db.versions.c.digest).where(mine)).scalars())
        connection.execute(db.versions.delete().where(mine))
        connection.execute(
            db.models.delete().where(db.models.c.tenant == tenant, db.models.c.name == name)
        )
        if owner.default_model == name:
            oldest = connection.execute(
                sa.select(db.models.c.name)
                .where(db.models.c.tenant == tenant)
                .order_by(db.models.c.created_at, db.models.c.name)
                .limit(1)
            ).scalar_one_or_none()
            _set_default(connection, tenant, oldest)
        _changed(transaction, who, "model.delete", tenant, name)
    return digests


def _changed(
    transaction: Transaction,
    who: Principal,
    action: str,
    tenant: str,
    what: str,
    detail: str = "",
) -> None:
    transaction.new_generation(tenant)
    transaction.note(actor(who), action, tenant=tenant, resource=f"models/{what}", detail=detail)


def _update(transaction: Transaction, tenant: str, name: str, **values: Any) -> None:
    transaction.connection.execute(
        db.models.update()
        .where(db.models.c.tenant == tenant, db.models.c.name == name)
        .values(**values)
    )


def _set_default(connection: sa.Connection, tenant: str, name: str | None) -> None:
    connection.execute(
        db.tenants.update().where(db.tenants.c.id == tenant).values(default_model=name)
    )


def _check_room(connection: sa.Connection, tenant: str, name: str, plan: Plan) -> None:
    others = connection.execute(
        sa.select(db.models.c.name).where(db.models.c.tenant == tenant)
    ).scalars()
    kept = set(others)
    if name not in kept and len(kept) >= plan.max_models:
        raise QuotaUsedUpError(
            f"the plan {plan.name} allows {plan.max_models} models; delete one first"
        )


def _check_classes(connection: sa.Connection, row: Any, after: DetectionSettings) -> None:
    names_ = connection.execute(
        sa.select(db.versions.c.classes).where(
            db.versions.c.tenant == row.tenant,
            db.versions.c.model == row.name,
            db.versions.c.version == row.current,
        )
    ).scalar_one()
    for wanted in after.classes or ():
        known = wanted in names_ if isinstance(wanted, str) else 0 <= wanted < len(names_)
        if names_ and not known:
            raise InvalidValueError(
                f"classes: {wanted!r} is neither a name nor an id (0 to {len(names_) - 1}) of a "
                f"class of {row.name}:{row.current}"
            )


def _own(connection: sa.Connection, tenant: str, name: str) -> Any:
    """Return the row of a model that its tenant may change."""
    if name == STANDARD:
        raise ForbiddenError(
            "the standard model is the platform's and cannot be changed; push one of your own"
        )
    row = connection.execute(
        sa.select(db.models).where(db.models.c.tenant == tenant, db.models.c.name == name)
    ).one_or_none()
    if row is None:
        raise _missing(name)
    return row


def _owner(connection: sa.Connection, tenant: str) -> Any:
    row = connection.execute(
        sa.select(db.tenants.c.default_model, db.runtimes.c.status)
        .join_from(db.tenants, db.runtimes)
        .where(db.tenants.c.id == tenant, db.tenants.c.state != "deleting")
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such tenant")
    return row


def _versions() -> sa.Select[Any]:
    artifacts = db.artifacts.c
    return sa.select(db.versions, artifacts.size, artifacts.family, artifacts.input).join_from(
        db.versions, db.artifacts
    )


def _view(row: Any, versions: list[Any], owner: Any) -> Model:
    state, reason = _fares(runtimes.read_status(owner.status), row.name, row.current)
    return Model(
        name=row.name,
        current=row.current,
        default=row.name == owner.default_model,
        settings=msgspec.convert(row.settings, DetectionSettings),
        versions=tuple(
            ModelVersion(
                version=one.version,
                digest=one.digest,
                size=one.size,
                family=one.family,
                classes=tuple(one.classes),
                input=tuple(one.input),
                created_at=one.created_at,
                created_by=one.created_by,
            )
            for one in sorted(versions, key=lambda one: one.version)
        ),
        state=state,
        reason=reason,
    )


def _standard_view(row: Any, owner: Any) -> Model:
    state, reason = _fares(runtimes.read_status(owner.status), STANDARD, row.version)
    only = ModelVersion(
        version=row.version,
        digest=row.digest,
        size=row.size,
        family=row.family,
        classes=tuple(row.classes or ()),
        input=tuple(row.input),
        created_at=row.created_at,
        created_by=f"platform ({row.label})" if row.label else "platform",
    )
    return Model(
        name=STANDARD,
        current=row.version,
        default=owner.default_model is None,
        settings=DetectionSettings(),
        versions=(only,),
        state=state,
        reason=reason,
    )


def _fares(status: RuntimeStatus, name: str, number: int) -> tuple[str, str]:
    for model in status.models:
        if (model.name, model.version) == (name, number):
            return model.state, model.reason
    return "", ""


def _missing(name: str, number: int | None = None) -> NotFoundError:
    what = f"model {name!r}" if number is None else f"version {number} of model {name!r}"
    return NotFoundError(f"there is no {what}; list the models to see what there is")
