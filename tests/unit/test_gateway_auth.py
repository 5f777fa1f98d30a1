"""Who is asking: every way to present a key, and every way to get it wrong."""

from __future__ import annotations

import gc
import hashlib
import secrets
import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.errors import ForbiddenError, UnauthenticatedError
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.source import address_of, networks
from polyolo.gateway.tokens import TokenBook
from polyolo.types import KeyEntry, Phase, Plan, Principal, TenantRoute, TenantState

NOW = 1_000_000.0
KEY = b"pk_abcdefghij01_" + b"-s_e" * 10 + b"cr3"


def entry(key: bytes = KEY, expires_at: float | None = None) -> KeyEntry:
    return KeyEntry(
        id=key[3:15].decode(),
        digest=hashlib.sha256(key).hexdigest(),
        tenant="t_1",
        scopes=("detect",),
        expires_at=expires_at,
    )


def ask(headers: list[tuple[bytes, bytes]], keys: dict[str, KeyEntry], now: float) -> Principal:
    return authenticate(presented(headers), keys, TokenBook(), now)


KEYS = {"abcdefghij01": entry()}
WHO = Principal(kind="key", id="abcdefghij01", tenant="t_1", scopes=("detect",))


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + KEY)],
        [(b"authorization", b"bearer  " + KEY + b" ")],
        [(b"x-api-key", KEY)],
        [(b"host", b"x"), (b"x-api-key", b" " + KEY), (b"authorization", b"BEARER " + KEY)],
    ],
)
def test_a_key_says_who_is_asking(headers):
    """Either header does, in any case of the scheme; the same key twice is one credential."""
    assert ask(headers, KEYS, NOW) == WHO


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "no credential"),
        ([(b"authorization", b"")], "must be: Bearer"),
        ([(b"authorization", b"Bearer")], "no API key"),
        ([(b"authorization", b"Basic " + KEY)], "must be: Bearer"),
        ([(b"authorization", KEY)], "must be: Bearer"),
        ([(b"x-api-key", b"")], "no API key"),
        ([(b"x-api-key", KEY + b"x")], "no API key"),
        ([(b"x-api-key", KEY[:-1])], "no API key"),
        ([(b"x-api-key", KEY.upper())], "no API key"),
        ([(b"x-api-key", b"po_" + KEY[3:])], "no API key"),
        ([(b"x-api-key", KEY[:-1] + b"4")], "unknown or was revoked"),
        ([(b"x-api-key", KEY[:14] + b"2" + KEY[15:])], "unknown or was revoked"),
        ([(b"x-api-key", KEY), (b"authorization", b"Bearer " + KEY[:-1] + b"4")], "two different"),
        ([(b"x-api-key", KEY), (b"x-api-key", KEY[:-1] + b"4")], "two different"),
        ([(b"x-api-key", KEY), (b"authorization", b"Basic eDp5")], "must be: Bearer"),
    ],
)
def test_anything_else_is_nobody(headers, reason):
    """Missing, malformed, unknown or contradicting credentials are refused with their reason."""
    with pytest.raises(UnauthenticatedError, match=reason) as caught:
        ask(headers, KEYS, NOW)
    assert "cr3" not in caught.value.detail
    assert caught.value.headers() == {"www-authenticate": "Bearer"}


def test_a_key_ends_when_it_expires():
    """The second of expiry is the first in which the key is refused."""
    keys = {"abcdefghij01": entry(expires_at=NOW)}
    ask([(b"x-api-key", KEY)], keys, NOW - 0.001)
    with pytest.raises(UnauthenticatedError, match="expired"):
        ask([(b"x-api-key", KEY)], keys, NOW)


@given(
    st.binary(max_size=80), st.sampled_from([b"", b"Bearer ", b"pk_", b"Bearer pk_abcdefghij01_"])
)
def test_no_other_bytes_get_in(value: bytes, prefix: bytes):
    """Whatever is sent but the key itself is refused, never an error of another kind."""
    for name in (b"authorization", b"x-api-key"):
        with pytest.raises(UnauthenticatedError):
            ask([(name, prefix + value)], KEYS, NOW)


def test_the_tenant_must_be_active_and_the_key_must_be_for_this():
    """Suspended and without scope are 403; a key of a tenant that is gone is nobody's."""
    route = TenantRoute(
        tenant="t_1", name="a", state=TenantState.ACTIVE, plan=Plan(name="p"), phase=Phase.READY
    )
    assert authorise(WHO, {"t_1": route}) is route
    with pytest.raises(ForbiddenError, match="scope detect"):
        authorise(Principal(kind="key", id="x", tenant="t_1"), {"t_1": route})
    suspended = TenantRoute(
        tenant="t_1", name="a", state=TenantState.SUSPENDED, plan=Plan(name="p"), phase=Phase.READY
    )
    with pytest.raises(ForbiddenError, match="suspended"):
        authorise(WHO, {"t_1": suspended})
    with pytest.raises(UnauthenticatedError):
        authorise(WHO, {})


def test_a_key_bound_to_networks_works_from_there_only():
    """The source must lie in one of the key's ranges; one that is not known lies in none."""
    route = TenantRoute(
        tenant="t_1", name="a", state=TenantState.ACTIVE, plan=Plan(name="p"), phase=Phase.READY
    )
    ranges = networks(["10.0.0.0/8", "2001:db8::/32"])
    for inside in ("10.9.8.7", "2001:db8::1"):
        assert authorise(WHO, {"t_1": route}, ranges=ranges, source=ip_address(inside)) is route
    for outside in (ip_address("11.0.0.1"), ip_address("2001:db9::1"), None):
        with pytest.raises(ForbiddenError, match="from where"):
            authorise(WHO, {"t_1": route}, ranges=ranges, source=outside)


def scope(peer: str | None, *forwarded: bytes) -> dict:
    headers = [(b"x-forwarded-for", value) for value in forwarded]
    return {"client": peer and (peer, 1), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("203.0.113.9", [b"1.2.3.4"], "203.0.113.9"),  # not a proxy: its word counts for nothing
        ("10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", [b"6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the client may write what it likes
        ("10.0.0.1", [b"6.6.6.6", b"1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", [b"1.2.3.4, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [b"10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        (None, [b"1.2.3.4"], "None"),
    ],
)
def test_forwarded_addresses_are_believed_from_trusted_proxies_only(peer, forwarded, found):
    """What a client claims of its own address is never taken for it."""
    assert str(address_of(scope(peer, *forwarded), networks(["10.0.0.0/24"]))) == found


def test_without_trusted_proxies_no_forwarded_address_is_read():
    """The default believes nobody."""
    assert str(address_of(scope("10.0.0.1", b"1.2.3.4"), ())) == "10.0.0.1"


def test_twenty_thousand_keys_cost_no_more_than_one():
    """Authentication looks nothing up but one entry: far under 50 microseconds at the median."""
    made = [b"pk_%012x_%s" % (n, secrets.token_urlsafe(32).encode()) for n in range(20_000)]
    keys = {key[3:15].decode(): entry(key) for key in made}
    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"content-type", b"image/jpeg")]
    took, book = [], TokenBook()
    gc.disable()
    for key in made[::10]:
        request = [*headers, (b"authorization", b"Bearer " + key)]
        start = time.perf_counter_ns()
        authenticate(presented(request), keys, book, NOW)
        took.append(time.perf_counter_ns() - start)
    gc.enable()
    assert sorted(took)[len(took) // 2] < 50_000
