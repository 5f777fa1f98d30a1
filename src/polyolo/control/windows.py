"""Hours of the week in which a runtime is kept awake: written `mon-fri 07:30-18:00`, in UTC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyolo.errors import InvalidValueError

MOST = 50
"""Windows of one tenant."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(
    r"(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? (?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)"
)
_MINUTE_S, _DAY_M, _WEEK_M = 60, 1440, 7 * 1440
_MONDAY_M = 4 * _DAY_M  # unix time began on a Thursday


@dataclass(frozen=True, slots=True)
class Window:
    """From a minute of the week on, for so many minutes; it may go on into the next week."""

    start: int
    minutes: int


def read(text: str) -> list[Window]:
    """Return the windows that a text means, one for each day.

    `sat 00:00-24:00` is all day; an end before the start is on the next day. Raises
    InvalidValueError that says what is wrong.
    """
    wrong = InvalidValueError(f"{text[:40]!r} must look like: mon-fri 07:30-18:00 (UTC)")
    found = _FORM.fullmatch(text)
    if found is None:
        raise wrong
    first, last = found["first"], found["last"] or found["first"]
    if first not in _DAYS or last not in _DAYS:
        raise wrong
    start, end = _minutes(found["start"], wrong), _minutes(found["end"], wrong)
    if start in (end, _DAY_M):
        raise wrong
    days = (_DAYS.index(last) - _DAYS.index(first)) % 7 + 1
    length = (end - start) % _DAY_M or _DAY_M
    begins = (_DAYS.index(first) + day for day in range(days))
    return [Window((day % 7) * _DAY_M + start, length) for day in begins]


def _minutes(text: str, wrong: InvalidValueError) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY_M:
        raise wrong
    return hours * 60 + minutes


def within(texts: Sequence[str], wall: float) -> tuple[bool, float | None]:
    """Say whether a moment (unix seconds) is in one of the windows, and when that may change.

    The seconds until the next start or end; None without windows.
    """
    windows = [window for text in texts for window in read(text)]
    if not windows:
        return False, None
    week = _WEEK_M * _MINUTE_S
    now = (wall - _MONDAY_M * _MINUTE_S) % week
    inside, changes = False, []
    for window in windows:
        since = (now - window.start * _MINUTE_S) % week
        length = window.minutes * _MINUTE_S
        inside |= since < length
        changes.append(length - since if since < length else week - since)
    return inside, min(changes)
