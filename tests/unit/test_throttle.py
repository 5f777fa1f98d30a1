"""Tries of passwords are slowed down: by address, by account, in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from polyolo.control.guesses import ACCOUNT, PAIR, SOURCE, Guesses
from polyolo.control.throttle import Pace, Throttle, network
from polyolo.errors import RateLimitedError

PACE = Pace(free=3, first_s=1.0, longest_s=8.0)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wait(throttle: Throttle, key: str = "k") -> float:
    """Try; return the seconds to wait, 0 when the try was let through."""
    try:
        throttle.begin(key)
    except RateLimitedError as error:
        return error.retry_after or 0.0
    return 0.0


def test_each_try_waits_longer_and_not_for_ever():
    """Three free ones, then 1, 2, 4, 8, 8 seconds; a try that is too early changes nothing."""
    clock = Clock()
    throttle = Throttle(PACE, clock)
    assert [wait(throttle) for _ in range(3)] == [0, 0, 0]
    for seconds in (1, 2, 4, 8, 8):
        assert wait(throttle) == wait(throttle) == seconds
        clock.now += seconds
        assert wait(throttle) == 0
    clock.now += 2 * PACE.longest_s + 1
    assert [wait(throttle) for _ in range(3)] == [0, 0, 0]


def test_a_very_patient_guesser_breaks_nothing():
    """The doubling is bounded: thousands of tries later the wait is still the longest."""
    clock = Clock()
    throttle = Throttle(PACE, clock)
    for _ in range(3000):
        clock.now += 8
        assert wait(throttle) == 0
    assert wait(throttle) == 8


def test_forgiven_and_cleared():
    """A good try is taken back by one; clearing forgets all."""
    throttle = Throttle(PACE, Clock())
    for _ in range(10):
        assert wait(throttle) == 0
        throttle.forgive("k")
    for _ in range(3):
        wait(throttle)
    assert wait(throttle) == 1
    throttle.clear("k")
    assert wait(throttle) == 0


def test_memory_is_bounded():
    """A million addresses leave as many counts as are allowed, the latest."""
    throttle = Throttle(PACE, Clock(), capacity=100)
    for number in range(10_000):
        throttle.begin(number)
    assert len(throttle) == 100
    for _ in range(2):
        throttle.begin(9_999)
    assert wait(throttle, 9_999) == 1  # type: ignore[arg-type]


def test_many_at_once_gain_nothing():
    """Of fifty threads at once, as many are let through as one after the other."""
    throttle = Throttle(PACE, Clock())
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: wait(throttle), range(50)))
    assert waits.count(0) == PACE.free


@pytest.mark.parametrize(
    ("source", "whose"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("", ""),
    ],
)
def test_whose_address_it_is(source, whose):
    """An IPv6 customer's /64 is one; a mapped address is the IPv4 one."""
    assert network(source) == whose


def test_an_account_from_everywhere():
    """A guesser with a thousand addresses gets one account's tries slowed to one a minute."""
    clock = Clock()
    guesses = Guesses(clock)
    let_through = 0
    for second in range(3600):
        clock.now += 1
        try:
            guesses.begin("ann@example.com", f"10.0.{second // 250}.{second % 250}")
        except RateLimitedError:
            continue
        let_through += 1
    assert let_through < ACCOUNT.free + 10 + 60


def test_many_accounts_from_one_address():
    """One common password against every account: the address itself is slowed down."""
    guesses = Guesses(Clock())
    for number in range(SOURCE.free):
        guesses.begin(f"user{number}@example.com", "203.0.113.7")
    with pytest.raises(RateLimitedError):
        guesses.begin("another@example.com", "203.0.113.7")


def test_an_account_of_ones_own_wipes_no_slate():
    """Signing in rightly between guesses at others does not make the guesses free."""
    guesses = Guesses(Clock())
    for number in range(SOURCE.free - 1):
        guesses.begin(f"user{number}@example.com", "203.0.113.7")
        guesses.begin("mine@example.com", "203.0.113.7")
        guesses.right("mine@example.com", "203.0.113.7")
    guesses.begin("one.more@example.com", "203.0.113.7")
    with pytest.raises(RateLimitedError):
        guesses.begin("another@example.com", "203.0.113.7")


def test_the_right_password_clears_ones_own_mistakes():
    """Four mistypes, then right: the next four are free again."""
    guesses = Guesses(Clock())
    for _ in range(5):
        for _ in range(PAIR.free - 1):
            guesses.begin("ann@example.com", "203.0.113.7")
        guesses.begin("ann@example.com", "203.0.113.7")
        guesses.right("ann@example.com", "203.0.113.7")
        guesses._source.clear("203.0.113.7")  # the address has a count of its own
