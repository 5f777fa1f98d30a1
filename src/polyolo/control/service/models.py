"""A tenant's models: pushed, shown, deleted.

The first model that a tenant pushes becomes its default. When the default model is deleted, the
oldest of those left takes its place; without any, the standard model.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service import modelrows, rollouts, runtimes, standard, tuning
from polyolo.control.service.artifacts import Artifact, remember
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import NotFoundError, QuotaUsedUpError
from polyolo.resources import Model, ModelSettings, ModelVersion
from polyolo.types import STANDARD, Plan, Principal, RuntimeStatus


def every(ledger: Ledger, tenant: str) -> list[Model]:
    """Return a tenant's models, oldest first, and the standard one last."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.models)
            .where(db.models.c.tenant == tenant)
            .order_by(db.models.c.created_at, db.models.c.name)
        ).all()
        versions = connection.execute(
            modelrows.versions().where(db.versions.c.tenant == tenant)
        ).all()
        owner = _owner(connection, tenant)
        views = [_view(row, [v for v in versions if v.model == row.name], owner) for row in rows]
        shared = standard.row(connection)
        return views if shared is None else [*views, _standard_view(shared, owner)]


def get(ledger: Ledger, tenant: str, name: str) -> Model:
    """Return one model. Raises NotFoundError."""
    found = next((model for model in every(ledger, tenant) if model.name == name), None)
    if found is None:
        raise modelrows.missing(name)
    return found


def version(ledger: Ledger, tenant: str, name: str, number: int) -> ModelVersion:
    """Return one version of a model. Raises NotFoundError."""
    for found in get(ledger, tenant, name).versions:
        if found.version == number:
            return found
    raise modelrows.missing(name, number)


def check_push(ledger: Ledger, tenant: str, name: str, plan: Plan) -> None:
    """Raise what `push` would raise whatever the file holds: before it is uploaded."""
    names.checked(name, "model", reserved=STANDARD)
    with ledger.reading() as connection:
        _check_room(connection, tenant, name, plan)


def push(transaction: Transaction, by: str, name: str, artifact: Artifact, plan: Plan) -> int:
    """Add a version to a model within a larger change, the model too if it is new.

    by: the event's actor. Returns the version's number. Raises InvalidValueError for the name,
    QuotaUsedUpError, and NotFoundError for a tenant that was deleted meanwhile.
    """
    names.checked(name, "model", reserved=STANDARD)
    connection, tenant = transaction.connection, artifact.tenant
    owner = _owner(connection, tenant)
    _check_room(connection, tenant, name, plan)
    remember(transaction, artifact)
    pushed = connection.execute(
        sa.select(db.models.c.pushed).where(modelrows.is_model(tenant, name))
    ).scalar()
    number = int(pushed or 0) + 1  # of a deleted version too: a number means one file for ever
    if pushed is not None:
        connection.execute(
            db.models.update().where(modelrows.is_model(tenant, name)).values(pushed=number)
        )
    else:
        connection.execute(
            db.models.insert().values(
                tenant=tenant,
                name=name,
                current=1,
                history=[],
                settings=msgspec.to_builtins(ModelSettings()),
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
            created_by=by,
        )
    )
    modelrows.changed(transaction, by, "model.push", tenant, f"{name}:{number}", artifact.digest)
    return number


def delete(ledger: Ledger, who: Principal, tenant: str, name: str) -> None:
    """Delete a model with its versions; files that no version names any more are deleted later.

    Raises NotFoundError, and ForbiddenError for the standard model.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        modelrows.own(connection, tenant, name)
        owner = _owner(connection, tenant)
        mine = (db.versions.c.tenant == tenant) & (db.versions.c.model == name)
        pictures = (db.golden.c.tenant == tenant) & (db.golden.c.model == name)
        connection.execute(db.golden.delete().where(pictures))
        connection.execute(db.versions.delete().where(mine))
        connection.execute(db.models.delete().where(modelrows.is_model(tenant, name)))
        if owner.default_model == name:
            oldest = connection.execute(
                sa.select(db.models.c.name)
                .where(db.models.c.tenant == tenant)
                .order_by(db.models.c.created_at, db.models.c.name)
                .limit(1)
            ).scalar_one_or_none()
            _set_default(connection, tenant, oldest)
        modelrows.changed(transaction, actor(who), "model.delete", tenant, name)


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


def _owner(connection: sa.Connection, tenant: str) -> Any:
    row = connection.execute(
        sa.select(db.tenants.c.default_model, db.runtimes.c.status)
        .join_from(db.tenants, db.runtimes)
        .where(db.tenants.c.id == tenant, db.tenants.c.state != "deleting")
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such tenant")
    return row


def _view(row: Any, versions: list[Any], owner: Any) -> Model:
    state, reason = _fares(runtimes.read_status(owner.status), row.name, row.current)
    return Model(
        name=row.name,
        current=row.current,
        default=row.name == owner.default_model,
        settings=tuning.read(row),
        versions=tuple(
            _version_view(one, one.created_by, one.taken_out)
            for one in sorted(versions, key=lambda one: one.version)
        ),
        state=state,
        reason=reason,
        rollout=rollouts.record_of(row),
        rolled_back_from=row.rolled_back,
    )


def _version_view(row: Any, by: str, taken_out: str = "") -> ModelVersion:
    return ModelVersion(
        version=row.version,
        digest=row.digest,
        size=row.size,
        family=row.family,
        classes=tuple(row.classes or ()),
        input=tuple(row.input),
        created_at=row.created_at,
        created_by=by,
        licence=row.licence,
        producer=row.producer,
        opset=row.opset,
        uri=row.uri,
        taken_out=taken_out,
    )


def _standard_view(row: Any, owner: Any) -> Model:
    state, reason = _fares(runtimes.read_status(owner.status), STANDARD, row.version)
    only = _version_view(row, f"platform ({row.label})" if row.label else "platform")
    return Model(
        name=STANDARD,
        current=row.version,
        default=owner.default_model is None,
        settings=ModelSettings(),
        versions=(only,),
        state=state,
        reason=reason,
    )


def _fares(status: RuntimeStatus, name: str, number: int) -> tuple[str, str]:
    for model in status.models:
        if (model.name, model.version) == (name, number):
            return model.state, model.reason
    return "", ""
