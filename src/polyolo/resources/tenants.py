"""Tenants as the control API shows them: limits, use, what is left of them."""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.resources.identity import ApiKey, User
from polyolo.types import Plan, RuntimeStatus, TenantState


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
    release: str | None = None
    """Release that its runtime is pinned to; None: it follows the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Plan):
    """What a tenant may use: its plan (`name`), with single limits of its own."""

    own: tuple[str, ...] = ()
    """Fields that are the tenant's own and not the plan's, as `burst` or `resources.cpus`."""
    images_used: int = 0
    """Pictures of this month so far."""
    month: str = ""
    """Calendar month (UTC) of `images_used`, as 2026-01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a runtime is kept awake, requests or not."""

    windows: tuple[str, ...] = ()
    """Hours of the week in UTC, as `mon-fri 07:30-18:00`."""


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
class UsageTaken:
    """Control's answer to a gateway's batch of usage records."""

    month: str
    """The month (UTC) of now, as 2026-01."""
    images: dict[str, int]
    """Pictures of this month so far, of each tenant in the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A new customer: tenant, owner and first API key, whose `key` is told only here."""

    tenant: Tenant
    user: User
    api_key: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an erasure left."""

    what: str
    why: str
    until: str
    """A date, or whose decision it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was removed of a tenant and what was kept, signed by the platform.

    Moments are in UTC, as in 2026-01-31T08:00:00Z. `polyolo tenants verify` checks it.
    """

    format: str
    platform: str
    """Its public URL."""
    tenant: str
    """The id that it had."""
    requested_at: str
    requested_by: str
    finished_at: str
    removed: dict[str, int]
    """How many there were, by kind."""
    files: tuple[str, ...]
    """SHA-256 of each model file."""
    kept: tuple[Kept, ...]
    usage: dict[str, dict[str, int]]
    """Sums of use by month (2026-01): requests, images, errors, engine_ms, bytes_in."""
    public_key: str
    """The Ed25519 key, base64, that signs the platform's audit log and this."""
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """A tenant that is erased, or will be in a moment."""

    id: str
    """Who knows it may read the certificate; there is nobody left to sign in for it."""
    tenant: str
    state: str
    """running or done."""
    requested_at: float
    requested_by: str
    certificate: Certificate | None = None
    """Once it is done."""
