"""Tries are slowed down, each one after the free ones more, in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from polyolo.control.throttle import Count, Pace, Throttle, counted, forgiven, network
from polyolo.errors import RateLimitedError

PACE = Pace(free=3, first_s=1.0, longest_s=8.0)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100_000.0

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


def test_a_good_try_is_taken_back():
    """Ten good ones count nothing; after three bad ones the next waits."""
    count = Count()
    for _ in range(10):
        count = forgiven(counted(PACE, count, 1000.0), 1000.0)
    for _ in range(3):
        count = counted(PACE, count, 1000.0)
    with pytest.raises(RateLimitedError):
        counted(PACE, count, 1000.5)
    assert forgiven(Count(), 1000.0) == Count()


def test_a_clock_that_is_put_back_locks_nobody_out():
    """By an hour: the next try waits no longer than it would have at most."""
    clock = Clock()
    throttle = Throttle(PACE, clock)
    for _ in range(4):
        wait(throttle)
    clock.now -= 3600
    assert wait(throttle) == 0
    clock.now += 3600 * 24 * 365
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
