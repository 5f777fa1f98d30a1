"""The external provider that people may sign in through, as the operator names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from polyolo.errors import InvalidValueError
from polyolo.tls import loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityProvider:
    """An OpenID Connect provider, and what this platform believes of it."""

    issuer: str
    """URL below which the provider describes itself; its ID tokens name it, to the letter."""
    client_id: str
    """What the provider calls this platform."""
    client_secret: str = field(default="", repr=False)
    """What this platform proves itself with; empty for a client that has none (PKCE is always
    used)."""
    name: str = ""
    """What people call the provider. Default: the issuer's host."""
    domains: tuple[str, ...] = ()
    """Domains of e-mail addresses; who has no verified address in one of them is refused.
    Default: the provider alone says who may come."""
    audiences: tuple[str, ...] = ()
    """Whom else its ID tokens may be for, besides this platform. Default: nobody."""
    link_by_email: bool = False
    """Whether a verified address makes its holder the user here who has that address. Only for a
    provider that gives an address to nobody but its owner."""

    def __post_init__(self) -> None:
        found = split(self.issuer)
        if found is None or found.query or len(self.issuer) > 500:
            raise InvalidValueError(
                f"the issuer {self.issuer!r} must be an https URL without query, like "
                "https://login.example.com (http only for this machine)"
            )
        if not self.client_id:
            raise InvalidValueError("the provider's client id is missing")

    @property
    def title(self) -> str:
        """Return what people call the provider."""
        return self.name or str(urlsplit(self.issuer).hostname)


def split(url: object) -> SplitResult | None:
    """Return the parts of a URL that secrets may be sent to: https, or http on this machine.

    None for everything else, whatever its type.
    """
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.fragment or "#" in url or "@" in parts.netloc or "\\" in url:
        return None
    safe = parts.scheme == "https" or (parts.scheme == "http" and loopback(host))
    return parts if safe else None
