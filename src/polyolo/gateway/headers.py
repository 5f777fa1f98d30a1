"""Says which headers cross the door, in either direction."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Scope

from polyolo.errors import InvalidValueError

Headers = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and what is written anew for each hop.
_HOP = frozenset(
    [b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
     b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"]
)  # fmt: skip
_TO_CONTROL = _HOP | {
    b"content-length",
    b"expect",
    b"x-request-id",
    b"forwarded",
    b"x-forwarded-for",
    b"x-real-ip",
}  # see `source`
_TO_RUNTIME = _TO_CONTROL | {b"host", b"authorization", b"x-api-key", b"cookie"}
_TO_CLIENT = _HOP | {b"date", b"server", b"x-request-id"}  # our own server writes these
_OURS = b"polyolo-"
_TIMEOUT = b"polyolo-timeout-ms"
_LONGEST_MS = 600_000


def _and_named_in_connection(drop: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            drop |= {token.strip().lower() for token in value.split(b",")}
    return drop


def timeout_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return the seconds that a client gives its request; None if it does not say.

    Raises InvalidValueError for what is no time.
    """
    for name, value in headers:
        if name == _TIMEOUT:
            if value.isdigit() and len(value) < 10 and 1 <= int(value) <= _LONGEST_MS:
                return int(value) / 1e3
            shown = value[:20].decode("latin-1")
            raise InvalidValueError(
                f"Polyolo-Timeout-Ms must be 1 to {_LONGEST_MS} milliseconds, not {shown!r}"
            )
    return None


def for_runtime(scope: Scope, *, cold_start: bool, left_s: float | None) -> Headers:
    """Return a request's headers for the tenant's runtime: without credentials and Polyolo-*.

    left_s: what is left of the time that the client gave, if it gave one.
    """
    passed = _for_next_hop(scope, _TO_RUNTIME)
    if cold_start:
        passed.append((b"polyolo-cold-start", b"1"))
    if left_s is not None:
        passed.append((_TIMEOUT, b"%d" % max(1, left_s * 1e3)))
    return passed


def for_control(scope: Scope, source: str) -> Headers:
    """Return a request's headers for the control plane: with the client's credentials.

    source: the client's address as far as it is believed; empty: not known.
    """
    passed = _for_next_hop(scope, _TO_CONTROL)
    passed.append((b"polyolo-client-address", source.encode()))
    return passed


def _for_next_hop(scope: Scope, drop: frozenset[bytes]) -> Headers:
    headers: Headers = scope["headers"]
    drop = _and_named_in_connection(drop, headers)
    passed = [h for h in headers if h[0] not in drop and not h[0].startswith(_OURS)]
    passed.append((b"x-request-id", scope["state"]["request_id"].encode()))
    return passed


def for_client(headers: Headers) -> tuple[Headers, dict[bytes, bytes]]:
    """Return an answer's headers for the client, and apart from them its Polyolo-* headers."""
    drop = _and_named_in_connection(_TO_CLIENT, headers)
    passed: Headers = []
    ours: dict[bytes, bytes] = {}
    for name, value in headers:
        if name.startswith(_OURS):
            ours[name] = value
        elif name not in drop:
            passed.append((name, value))
    return passed, ours
