"""The console's session in a browser: its cookie, and what proves that a page of ours asks."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from polyolo.errors import ForbiddenError

CSRF_HEADER = "x-csrf-token"

_SESSION = "polyolo_session"
_SIGN_IN = "polyolo_sign_in"
_SECURE = "__Host-"
"""A browser takes a name that begins so only from our own host, over TLS: no neighbour can plant
one."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_of(headers: Mapping[str, str], *, secure: bool) -> str:
    """Return the session's id in a request's cookies; "" without one."""
    return _value(_SESSION, headers, secure=secure)


def set_cookie(session: str, *, secure: bool) -> str:
    """Return the Set-Cookie header of a new session; it lasts until the browser is closed."""
    return _line(_SESSION, session, secure=secure)


def drop_cookie(*, secure: bool) -> str:
    """Return the Set-Cookie header that makes a browser forget the session."""
    return _line(_SESSION, "", secure=secure, seconds=0)


def sign_in_of(headers: Mapping[str, str], *, secure: bool) -> str:
    """Return the sealed sign-in that a browser has under way; "" without one."""
    return _value(_SIGN_IN, headers, secure=secure)


def set_sign_in(sealed: str, seconds: int, *, secure: bool) -> str:
    """Return the Set-Cookie header of a sign-in under way; with "" and 0, one that ends it."""
    return _line(_SIGN_IN, sealed, secure=secure, seconds=seconds)


def _value(name: str, headers: Mapping[str, str], *, secure: bool) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(f"{_SECURE}{name}" if secure else name)
    return found.value if found else ""


def _line(name: str, value: str, *, secure: bool, seconds: int | None = None) -> str:
    prefix, suffix = (_SECURE, "; Secure") if secure else ("", "")
    ends = "" if seconds is None else f"; Max-Age={seconds}"
    return f"{prefix}{name}={value}; Path=/; HttpOnly; SameSite=Lax{suffix}{ends}"


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
