"""The console's session in a browser: its cookie, and what proves that a page of ours asks."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from polyolo.errors import ForbiddenError

CSRF_HEADER = "x-csrf-token"

_PLAIN = "polyolo_session"
_SECURE = "__Host-polyolo_session"
"""A browser takes this name only from our own host, over TLS: no neighbour can plant it."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_of(headers: Mapping[str, str], *, secure: bool) -> str:
    """Return the session's id in a request's cookies; "" without one."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(_SECURE if secure else _PLAIN)
    return found.value if found else ""


def set_cookie(session: str, *, secure: bool) -> str:
    """Return the Set-Cookie header of a new session; it lasts until the browser is closed."""
    name = f"{_SECURE if secure else _PLAIN}={session}"
    return f"{name}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"


def drop_cookie(*, secure: bool) -> str:
    """Return the Set-Cookie header that makes a browser forget the session."""
    return f"{set_cookie('', secure=secure)}; Max-Age=0"


def csrf_token(session: str) -> str:
    """Return what a page of ours sends to prove that it is one: bound to the session's id.

    Only who was told it, or knows the id, has it; a page of another site cannot read either.
    """
    return hmac.new(session.encode(), b"polyolo csrf token", hashlib.sha256).hexdigest()


def check_page(method: str, headers: Mapping[str, str], session: str) -> None:
    """Raise ForbiddenError when a request with a session's cookie may be another site's doing."""
    if method in _SAFE:
        return
    check_site(headers)
    given = headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_token(session).encode()):
        raise ForbiddenError("send the csrf_token of your session in the header X-CSRF-Token")


def check_site(headers: Mapping[str, str]) -> None:
    """Raise ForbiddenError when a browser says that another site's page asks.

    For what needs no session yet: nobody may be signed in, unknowingly, as somebody else.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForbiddenError("a page of another site may not do this")
    if "sec-fetch-site" in headers:
        return  # from a browser that says it for sure
    origin = headers.get("origin")
    host = headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise ForbiddenError("a page of another site may not do this")
