"""Windows of the week: what they mean, moment by moment, and what is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.control.windows import read, within
from polyolo.errors import InvalidValueError

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at", "inside", "hours"),
    [
        ("mon-fri 08:00-18:00", MONDAY + timedelta(hours=7), False, 1),
        ("mon-fri 08:00-18:00", MONDAY + timedelta(hours=8), True, 10),
        ("mon-fri 08:00-18:00", MONDAY + timedelta(hours=18), False, 14),
        ("mon-fri 08:00-18:00", MONDAY + timedelta(days=4, hours=17), True, 1),
        ("mon-fri 08:00-18:00", MONDAY + timedelta(days=5, hours=9), False, 47),
        ("sat 22:00-02:00", MONDAY + timedelta(days=6, hours=1), True, 1),
        ("sat 22:00-02:00", MONDAY + timedelta(days=6, hours=3), False, 163),
        ("sun 20:00-04:00", MONDAY + timedelta(hours=3), True, 1),
        ("sat-mon 00:00-24:00", MONDAY + timedelta(hours=5), True, 19),
        ("tue 00:00-24:00", MONDAY, False, 24),
    ],
)
def test_a_moment_is_inside_or_not_and_when_that_changes(text, at, inside, hours):
    """Days of the week in UTC, over midnight and over the end of the week."""
    assert within([text], at.timestamp()) == (inside, hours * 3600)


def test_several_windows_are_one_schedule():
    """Inside one is inside; the next change is the nearest of all."""
    both = ["mon 08:00-09:00", "mon 08:30-12:00"]
    assert within(both, (MONDAY + timedelta(hours=8, minutes=45)).timestamp()) == (True, 900)
    assert within([], MONDAY.timestamp()) == (False, None)


@pytest.mark.parametrize(
    "text",
    ["", "mon", "mon 8:00-9:00", "mon 08:00-08:00", "mon 24:00-08:00", "mon 08:60-09:00",
     "mon 08:00-25:00", "die 08:00-09:00", "mon-fri 08:00-09:00 ", "MON 08:00-09:00", "x" * 999],
)  # fmt: skip
def test_what_is_no_window_is_refused(text: str):
    """With an example of what is one."""
    with pytest.raises(InvalidValueError, match="must look like"):
        read(text)


@given(st.floats(0, 4e9), st.integers(0, 6), st.integers(0, 23), st.integers(1, 24))
def test_the_change_that_is_announced_comes_then(wall: float, day: int, start: int, end: int):
    """Just before it nothing is different, just after it everything is."""
    if start == end:
        return
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    texts = [f"{days[day]} {start:02}:00-{end:02}:00"]
    inside, seconds = within(texts, wall)
    assert seconds is not None
    assert seconds > 0
    if seconds > 1:
        assert within(texts, wall + seconds - 0.5)[0] is inside
    assert within(texts, wall + seconds + 0.5)[0] is not inside
