"""Who asks, as the control API shows it: keys, OAuth clients, people, sessions."""

from __future__ import annotations

from dataclasses import dataclass


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
    """Minute in which it was last used, told up to a second later."""
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
    previous_until: float | None = None
    """Until when the secret before this one is good too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """The answer of `/oauth2/token`, in OAuth2's words."""

    access_token: str
    token_type: str
    expires_in: int
    """Seconds."""
    scope: str


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
class Identity:
    """A way to sign in: whom an external provider vouches for."""

    id: str
    issuer: str
    """The provider's URL."""
    subject: str
    """What the provider calls the person."""
    created_at: float
    last_used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInWays:
    """How people may sign in to this platform, besides by password."""

    registration: str
    """Who may register: open (everybody), invite or closed."""
    provider: str | None
    """Name of the external provider, for people; null: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Where a page should send the browser now."""

    url: str
