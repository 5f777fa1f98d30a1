"""The platform's own model, the operator's choice, which every tenant may call."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.artifacts import PLATFORM
from polyolo.control.service.artifacts import Artifact, remember
from polyolo.control.service.ledger import Ledger


def row(connection: sa.Connection) -> Any:
    """Return the standard model's artifact with its `version` and `label`; None before any."""
    platform, artifacts = db.platform.c, db.artifacts
    return connection.execute(
        sa.select(
            artifacts,
            platform.standard_version.label("version"),
            platform.standard_label.label("label"),
        ).join_from(
            db.platform,
            artifacts,
            (platform.standard_digest == artifacts.c.digest) & (artifacts.c.tenant == PLATFORM),
        )
    ).one_or_none()


def choose(ledger: Ledger, artifact: Artifact, label: str) -> None:
    """Make `artifact` the standard model; a new generation for all runtimes if it is another.

    The version counts up with each change, so that answers tell the old one from the new.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        known = row(connection)
        remember(transaction, artifact)
        digest = artifact.digest
        if known is not None and known.digest == digest and known.label == label:
            return
        values: dict[str, Any] = {"standard_label": label}
        if known is None or known.digest != digest:
            values["standard_digest"] = digest
            values["standard_version"] = 1 if known is None else known.version + 1
            generation = db.runtimes.c.generation
            connection.execute(db.runtimes.update().values(generation=generation + 1))
        connection.execute(db.platform.update().values(**values))
        transaction.note(
            "operator",
            "standard.choose",
            tenant=None,
            resource="models/standard",
            detail=f"{label} {digest}".strip(),
        )
