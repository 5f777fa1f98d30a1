"""Where a request comes from: the peer, or what proxies that are trusted say of it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

from polyolo.errors import InvalidValueError

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]


def networks(written: Sequence[str]) -> Networks:
    """Return networks as written in CIDR or as addresses. Raises ValueError."""
    return tuple(ip_network(one, strict=False) for one in written)


def checked(written: Sequence[str]) -> tuple[str, ...]:
    """Return networks as they are written; raise InvalidValueError if one is none."""
    try:
        networks(written)
    except ValueError as error:
        raise InvalidValueError(f"trusted proxies are networks, as 10.0.0.0/8: {error}") from None
    return tuple(written)


def address_of(scope: Scope, trusted: Networks) -> Address | None:
    """Return the address that a request came from; None if its connection has none.

    X-Forwarded-For is believed only as far as trusted proxies wrote it: read from its end, the
    first address that is no such proxy's is the client's. Without trusted proxies it is not read.
    """
    client = scope.get("client")
    found = None if client is None else _read(client[0])
    if not trusted or not within(found, trusted):
        return found
    listed = [v for n, v in scope["headers"] if n == b"x-forwarded-for"]
    for written in reversed(b",".join(listed).decode("latin-1").split(",")):
        hop = _read(written.strip())
        if hop is None:
            break  # what stands before it was written by nobody who is trusted
        found = hop
        if not within(found, trusted):
            break
    return found


def within(address: Address | None, ranges: Networks) -> bool:
    """Say whether an address lies in one of the networks; one that is not known lies in none."""
    return address is not None and any(address in one for one in ranges)


def _read(written: str) -> Address | None:
    try:
        address = ip_address(written)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # one and the same peer, seen through a dual-stack socket
    return address
