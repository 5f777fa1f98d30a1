"""The tables. A schema change is a new migration under `migrations/versions`, and the same here."""

from __future__ import annotations

import sqlalchemy as sa

from polyolo.control.transactions import insert_new, open_engine, reading, scrub, writing

__all__ = ["insert_new", "open_engine", "reading", "scrub", "writing"]  # of whom has the tables too

metadata = sa.MetaData(
    naming_convention={  # constraints need names to be altered by a later migration
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

platform = sa.Table(
    "platform",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("standard_digest", sa.String(64)),
    sa.Column("standard_label", sa.String(200), nullable=False),
    sa.Column("standard_version", sa.Integer, nullable=False),
    sa.Column("touched_since", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("release", sa.String(63), nullable=False, server_default=""),  # of runtimes
    sa.Column("next_release", sa.String(63), nullable=False, server_default=""),
    sa.Column("next_share", sa.Double, nullable=False, server_default="0"),  # of the tenants
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(63), unique=True),  # null once deleting: the name is free again
    sa.Column("plan", sa.String(63), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # active, suspended, deleting
    sa.Column("default_model", sa.String(63)),  # null: the standard model
    sa.Column("storage", sa.Text),  # of its own, sealed; see service.storages
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("limits", sa.JSON(none_as_null=True)),  # its own, in place of the plan's
    sa.Column("release", sa.String(63)),  # of its runtime; null: the platform's
)

touched = sa.Table(
    "touched",  # the last change of each tenant since platform.touched_since, of those gone too
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("last_used_at", sa.Double),  # to a minute
    sa.Column("sources", sa.JSON),  # networks; null: from anywhere
    sa.Column("replaced_by", sa.String(12)),  # the key that it was rotated to
)

oauth_clients = sa.Table(
    "oauth_clients",
    metadata,
    sa.Column("id", sa.String(15), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Column("last_used_at", sa.Double),
    sa.Column("previous_digest", sa.String(64)),  # of the secret before this one
    sa.Column("previous_until", sa.Double),  # and until when it is good
)

revoked_tokens = sa.Table(
    "revoked_tokens",  # until they would have ended anyway
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("client", sa.String(15), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

signing_keys = sa.Table(
    "signing_keys",  # of access tokens
    metadata,
    sa.Column("id", sa.String(43), primary_key=True),  # thumbprint of the key (RFC 7638)
    sa.Column("public", sa.JSON, nullable=False),  # JWK
    sa.Column("private", sa.Text, nullable=False),  # JWK, sealed
    sa.Column("signs_from", sa.Double, nullable=False),  # until the next one does
)

artifacts = sa.Table(
    "artifacts",  # what was found in a tenant's model file; the file is in the object store
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),  # no foreign key: "" is the platform
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("family", sa.String(63), nullable=False),
    sa.Column("classes", sa.JSON(none_as_null=True)),  # null: of a release that did not keep them
    sa.Column("input", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("licence", sa.String(200), nullable=False, server_default=""),
    sa.Column("producer", sa.String(200), nullable=False, server_default=""),
    sa.Column("opset", sa.Integer, nullable=False, server_default="0"),
    sa.Column("uri", sa.Text, nullable=False, server_default=""),  # in the tenant's own storage
)

uploads = sa.Table(
    "uploads",  # model files on their way in; the bytes are in the object store
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("size", sa.BigInteger),  # null: not told before the end
    sa.Column("sha256", sa.String(64), nullable=False),  # as its owner told; "": not told
    sa.Column("uri", sa.Text, nullable=False),  # in the tenant's own storage; "": it is sent
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # see service.uploads
    sa.Column("code", sa.String(32), nullable=False),  # of the error that it was refused with
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("tries", sa.Integer, nullable=False),  # to check it
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("touched_at", sa.Double, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("tenant", sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("current", sa.Integer, nullable=False),
    sa.Column("history", sa.JSON, nullable=False),  # versions that were current, oldest first
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("pushed", sa.Integer, nullable=False, server_default="1"),  # the last number given
    sa.Column("rolled_back", sa.Integer),  # the version that was left by going back
    sa.Column("rollout", sa.JSON(none_as_null=True)),  # see service.rollouts
)

golden = sa.Table(
    "golden",  # pictures that versions are compared on; their bytes are in the object store
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("expected", sa.Text),  # boxes, sealed; null: not known
    sa.Column("created_at", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.name"]),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("taken_out", sa.Text, nullable=False, server_default=""),  # why, if it was
    sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.name"]),
    sa.ForeignKeyConstraint(
        ["tenant", "digest"],
        ["artifacts.tenant", "artifacts.digest"],
        name="fk_versions_tenant_digest",  # by convention it would be the one above's
    ),
)

runtimes = sa.Table(
    "runtimes",
    metadata,
    sa.Column("tenant", sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),  # of the desired state
    sa.Column("status", sa.JSON, nullable=False),  # RuntimeStatus as last observed
    sa.Column("used_at", sa.Double, nullable=False, server_default="0"),  # 0: never
    sa.Column("load", sa.JSON(none_as_null=True)),  # by gateway: requests in flight, and when
    sa.Column("windows", sa.JSON(none_as_null=True)),  # hours of the week to be awake in
)

events = sa.Table(
    "events",  # no foreign keys: what happened outlives whom it happened to
    metadata,
    sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),  # SQLite counts up INTEGER only
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("action", sa.String(63), nullable=False),
    sa.Column("tenant", sa.String(12), index=True),
    sa.Column("resource", sa.String(200), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("kind", sa.String(8), nullable=False, server_default="change"),  # call, detect
    sa.Column("source", sa.String(64), nullable=False, server_default=""),  # address of the caller
    sa.Column("status", sa.Integer, nullable=False, server_default="0"),  # HTTP; 0: a change
    # See control.audit. Null only in rows of a release that kept no chain.
    sa.Column("number", sa.BigInteger),  # within its tenant's entries, from 1
    sa.Column("digest", sa.String(64)),
    sa.Column("chain", sa.String(64)),  # over the tenant's entries
    sa.Column("whole", sa.String(64)),  # over all entries
    sa.Column("salt", sa.String(32)),
    sa.Column("redacted", sa.String(64)),
    sa.Column("signature", sa.String(128)),  # in the last entry of each transaction
    sa.Index("ix_events_kind_seq", "kind", "seq"),
)

audit_marks = sa.Table(
    "audit_marks",  # signed: where each chain ends, where it begins after pruning, who is erased
    metadata,
    sa.Column("chain", sa.String(12), primary_key=True),  # tenant's id, "" platform, * whole
    sa.Column("kind", sa.String(8), primary_key=True),  # head, anchor, erased
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128), nullable=False),
)

audit_keys = sa.Table(
    "audit_keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("sealed", sa.Text, nullable=False),  # the private key
)

data_keys = sa.Table(
    "data_keys",  # what seals the secrets of one tenant; see control.secrets
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),  # no foreign key: "" is the platform
    sa.Column("wrapped", sa.Text, nullable=False),
)

lease = sa.Table(
    "lease",  # who reconciles; see control.leader
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row: 1
    sa.Column("epoch", sa.BigInteger, nullable=False),  # grows with every change of holder
    sa.Column("holder", sa.String(200), nullable=False),  # empty: given up
    sa.Column("beat", sa.BigInteger, nullable=False),  # grows while the holder is alive
)

usage_records = sa.Table(
    "usage_records",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(12), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("engine_ms", sa.Double, nullable=False),
    sa.Column("bytes_in", sa.BigInteger, nullable=False),
    sa.Column("cold_start", sa.Boolean, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False, server_default="1"),  # that it stands for
    sa.Index("ix_usage_records_tenant_at", "tenant", "at"),
)

usage_months = sa.Table(
    "usage_months",  # sums of usage_records, kept up with them
    metadata,
    sa.Column("tenant", sa.String(12), primary_key=True),
    sa.Column("month", sa.String(7), primary_key=True),  # UTC, 2026-01
    sa.Column("images", sa.BigInteger, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("email", sa.Text, nullable=False),  # sealed, if the platform seals
    sa.Column("email_digest", sa.String(64), unique=True, nullable=False),  # to find it by
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password", sa.String(200), nullable=False),  # argon2id with its salt; "": has none
    sa.Column("created_at", sa.Double, nullable=False),
)

identities = sa.Table(
    "identities",  # whom an external provider vouches for
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("user", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("digest", sa.String(64), unique=True, nullable=False),  # of issuer and subject
    sa.Column("issuer", sa.String(500), nullable=False),
    sa.Column("subject", sa.Text, nullable=False),  # sealed
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("last_used_at", sa.Double, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # of what the cookie holds
    sa.Column("user", sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),  # to a minute
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.id"), index=True),  # null: to register a new one
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double),
)

replays = sa.Table(
    "replays",  # answers to requests with an Idempotency-Key, for a day
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # digest of who asked and of the key
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("request", sa.String(64), nullable=False),  # digest of what was asked; "" till done
    sa.Column("status", sa.Integer, nullable=False),  # 0: not answered yet
    sa.Column("answer", sa.LargeBinary, nullable=False),  # encrypted
    sa.Column("tenant", sa.String(12), index=True),  # whom the answer is about
)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("id", sa.String(46), primary_key=True),  # who knows it may read the certificate
    sa.Column("tenant", sa.String(12), unique=True, nullable=False),
    sa.Column("requested_at", sa.Double, nullable=False),
    sa.Column("requested_by", sa.String(100), nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),  # what was removed so far
    sa.Column("certificate", sa.JSON(none_as_null=True)),  # null until all is done
    sa.Column("kept_until", sa.Double),
)

tries = sa.Table(
    "tries",  # of passwords and registrations; see control.throttle
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),  # fingerprint of whom or where from
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("last", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),  # the next one waits
    sa.Column("forget_at", sa.Double, nullable=False, index=True),
)
