"""The platform as the control API shows it: what isolates tenants, what happened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationLayer:
    """One thing that keeps tenants apart."""

    layer: str
    state: str
    """on, missing, or not needed."""
    guards: str
    why: str = ""
    """Why it is not on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIsolation:
    """What keeps tenants apart on a host."""

    complete: bool
    """Whether nothing that is needed is missing."""
    strict: bool
    """Whether the platform refuses to start without one of them."""
    layers: tuple[IsolationLayer, ...]


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
    """SHA-256 of all of the above but `seq`; of resource, detail and source by a commitment."""
    chain: str
    """SHA-256 over the chain of the tenant's entry before and this one's digest."""
    whole: str = ""
    """The same over all entries of the platform; for the operator."""
    signature: str | None = None
    """Of both chains, by the platform; in the last entry of a transaction."""
    salt: str | None = None
    """What the commitment to resource, detail and source was made with."""
    redacted: str | None = None
    """That commitment, where an erasure has taken away the words and the salt."""


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
