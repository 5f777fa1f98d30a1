"""E-mail addresses: what is one, and when two are the same."""

from __future__ import annotations

import re

from polyolo.errors import InvalidValueError

_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN = re.compile(r"(?:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def normal(address: str) -> str:
    """Return the one spelling of an address, in lower case; raise InvalidValueError for no address.

    No mail service tells `Ann@` from `ann@`, so neither do we; the characters are those of an
    RFC 5322 dot-atom, so that no two addresses only look the same.
    """
    local, _, domain = address.strip().rpartition("@")
    try:
        domain = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        domain = ""
    if (
        len(local) > 64  # RFC 5321 section 4.5.3.1
        or len(local) + len(domain) > 253
        or not _LOCAL.fullmatch(local)
        or not _DOMAIN.fullmatch(domain)
    ):
        raise InvalidValueError("email: this is not an e-mail address, like ann@example.com")
    return f"{local.lower()}@{domain}"
