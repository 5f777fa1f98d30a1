"""Names and secrets: what may be called how, and what is drawn at random."""

from __future__ import annotations

import hashlib
import re
import secrets
import string

from polyolo.errors import InvalidValueError

SCOPES = (
    "detect",
    "models:read",
    "models:write",
    "usage:read",
    "audit:read",
    "keys:write",
    "settings:write",
)
"""What an API key may be allowed to do."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_API_KEY = re.compile(r"pk_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_INVITATION = re.compile(r"pi_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_ALPHABET = string.ascii_lowercase + string.digits


def checked(name: str, what: str, *, reserved: str) -> str:
    """Return `name` if it may be the name of a `what`, else raise InvalidValueError."""
    if not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"the name of a {what} has 1 to 63 letters, digits, dots, underscores and hyphens "
            "and begins with a letter or digit"
        )
    if name == reserved:
        raise InvalidValueError(f"{reserved!r} is reserved, choose another name for the {what}")
    return name


def tenant_id() -> str:
    """Return a new tenant's id."""
    return "t_" + _draw(10)  # 36^10: a clash is less likely than a disk error, and refused


def key_id() -> str:
    """Return a new API key's id."""
    return _draw(12)


def api_key(identifier: str) -> str:
    """Return a new API key with the id given: 256 random bits, told once."""
    return f"pk_{identifier}_{secrets.token_urlsafe(32)}"


def client_id() -> str:
    """Return a new OAuth client's id."""
    return "oc_" + _draw(12)


def client_secret() -> str:
    """Return a new OAuth client's secret: 256 random bits, told once."""
    return f"cs_{secrets.token_urlsafe(32)}"


def operator_key() -> str:
    """Return a new operator key."""
    return f"po_{secrets.token_urlsafe(32)}"


def key_id_of(key: str) -> str | None:
    """Return the id in an API key; None when it is not one."""
    match = _API_KEY.fullmatch(key)
    return match[1] if match else None


def user_id() -> str:
    """Return a new user's id."""
    return "u_" + _draw(10)


def suffix() -> str:
    """Return what tells a tenant's name from another one's that was derived from the same word."""
    return _draw(6)  # 36^6: one in a million for a thousand tenants called alike, and refused


def session_id() -> str:
    """Return what a session's cookie holds: 256 random bits."""
    return secrets.token_urlsafe(32)


def invitation_token(identifier: str) -> str:
    """Return the token of an invitation with the id given, told once."""
    return f"pi_{identifier}_{secrets.token_urlsafe(32)}"


def invitation_id_of(token: str) -> str | None:
    """Return the id in an invitation's token; None when it is not one."""
    match = _INVITATION.fullmatch(token)
    return match[1] if match else None


def erasure_id() -> str:
    """Return a new erasure's id: 256 random bits, since whoever has it may read the certificate."""
    return f"er_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """Return what is stored of a random secret: no salt, since it cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _draw(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
