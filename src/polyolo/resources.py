"""What the control API answers, as clients see it: the resources behind its paths.

The same rules as in `polyolo.types`: frozen, slotted, keyword-only, a field is added with a
default and is never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.types import DetectionSettings, RuntimeStatus, TenantState


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key; `key` is there only in the answer that creates it."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    key: str | None = None
    last_used_at: float | None = None
    """Minute of the last detection that it was used for, told up to a second later."""
    sources: tuple[str, ...] = ()
    """Networks that it may be used from; empty: from anywhere."""
    replaced_by: str | None = None
    """Id of the key that it was rotated to; it stops at `expires_at`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthClient:
    """A program of a tenant that gets access tokens; its secret is told once."""

    id: str
    name: str
    scopes: tuple[str, ...]
    """What its tokens may do at most."""
    created_at: float
    client_id: str
    """The same as `id`, under the name that OAuth2 has for it."""
    client_secret: str | None = None
    """Only in the answer that makes the client, or gives it a new secret."""
    revoked_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """The answer of `/oauth2/token`, in OAuth2's words."""

    access_token: str
    token_type: str
    expires_in: int
    """Seconds."""
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A customer of the platform."""

    id: str
    name: str
    plan: str
    state: TenantState
    created_at: float
    default_model: str
    runtime: RuntimeStatus | None = None
    api_key: ApiKey | None = None
    """The first key, only in the answer that creates the tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """An immutable, numbered version of a model, content-addressed by sha256."""

    version: int
    digest: str
    size: int
    """Bytes."""
    family: str
    classes: tuple[str, ...]
    input: tuple[int, ...]
    created_at: float
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named model of a tenant."""

    name: str
    current: int
    default: bool
    """True for the model that answers when a request names none."""
    settings: DetectionSettings
    versions: tuple[ModelVersion, ...]
    state: str = ""
    """How the current version fares in the runtime: ModelStatus.state, or empty if unknown."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """A tenant's use of one model."""

    model: str
    requests: int
    images: int
    engine_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A tenant's use of the platform from `since` to `until` (unix seconds)."""

    tenant: str
    name: str
    since: float
    until: float
    requests: int
    images: int
    errors: int
    """Requests answered with a status of 400 or more."""
    engine_ms: float
    bytes_in: int
    models: tuple[ModelUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person of a tenant."""

    id: str
    email: str
    role: str
    """owner, developer, viewer or billing."""
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """The right to become a user of a tenant, or to register, once; its token is told once."""

    id: str
    name: str
    """For whom, for people to read."""
    role: str
    created_at: float
    expires_at: float
    used_at: float | None = None
    token: str | None = None
    """Only in the answer that makes the invitation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A new customer: tenant, owner and first API key, whose `key` is told only here."""

    tenant: Tenant
    user: User
    api_key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody signed in; the session itself is in a cookie that no script can read."""

    user: User
    tenant: str
    """The tenant's id."""
    scopes: tuple[str, ...]
    """What the user's role may do."""
    csrf_token: str
    """To be sent as X-CSRF-Token with every request that changes something."""
    expires_at: float
    """Unix seconds when it ends, however busy it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What happened once: a change, an API call, a detection."""

    seq: int
    """Place in the log: among all entries for the operator, among its own for a tenant."""
    at: float
    kind: str
    """change, call or detect."""
    actor: str
    action: str
    tenant: str | None
    resource: str
    detail: str
    source: str
    """Address that the call came from; empty for what the platform did by itself."""
    status: int
    """HTTP status of the answer; 0 for a change."""
    number: int
    """Place among the tenant's entries, from 1."""
    digest: str
    """SHA-256 of all of the above but `seq`."""
    chain: str
    """SHA-256 over the chain of the tenant's entry before and this one's digest."""
    whole: str = ""
    """The same over all entries of the platform; for the operator."""
    signature: str | None = None
    """Of both chains, by the platform; in the last entry of a transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditProblem:
    """An entry that is not as it was written, or is missing."""

    seq: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict:
    """What a check of the audit log found; no problems: it is as it was written."""

    entries: int
    problems: tuple[AuditProblem, ...]
    public_key: str
    """The Ed25519 key, base64, that signs the log."""
