"""Calendar months in UTC: what quotas and bills are counted by."""

from __future__ import annotations

from datetime import UTC, datetime


def label(now: float) -> str:
    """Return the month of a moment, unix seconds, as 2026-01."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def start(now: float) -> float:
    """Return when the month of a moment began. Both in unix seconds."""
    day = datetime.fromtimestamp(now, UTC)
    return datetime(day.year, day.month, 1, tzinfo=UTC).timestamp()


def end(now: float) -> float:
    """Return when the month after a moment's begins. Both in unix seconds."""
    day = datetime.fromtimestamp(now, UTC)
    year, month = divmod(day.year * 12 + day.month, 12)  # months count from 1: this is the next
    return datetime(year, month + 1, 1, tzinfo=UTC).timestamp()
