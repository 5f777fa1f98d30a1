"""Calendar months: where they begin and end, in UTC, wherever the machine is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from polyolo import months


@pytest.mark.parametrize(
    ("moment", "label", "start", "end"),
    [
        ("2026-01-31T23:59:59.999", "2026-01", "2026-01-01", "2026-02-01"),
        ("2026-12-31T23:59:59.999", "2026-12", "2026-12-01", "2027-01-01"),
        ("2028-02-29T12:00:00", "2028-02", "2028-02-01", "2028-03-01"),
        ("2026-11-01T00:00:00", "2026-11", "2026-11-01", "2026-12-01"),
    ],
)
def test_a_month(moment, label, start, end):
    """Its label, its first moment, and the first one after it."""

    def unix(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    now = unix(moment)
    assert (months.label(now), months.start(now), months.end(now)) == (
        label,
        unix(start),
        unix(end),
    )
