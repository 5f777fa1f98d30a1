"""Bounds how many model files may be coming in at once: each holds a piece of itself in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from polyolo.errors import OverloadedError, RateLimitedError

PIECE_BYTES = 4 << 20
"""Bytes gathered before they are sealed and stored: 128 pieces for the largest file of a plan."""
LEAST_BYTES = 64 << 10
"""Bytes that a piece has at least, but for the last: who sends less at a time is not resumed."""
MOST = 48
"""Bodies that come in at once: 200 MB of pieces. Each has a connection, none of them a thread."""
MOST_OF_ONE = 12
"""Of one tenant."""


class Arrivals:
    """Counts bodies that come in. On the event loop."""

    def __init__(self) -> None:
        self._by_tenant: Counter[str] = Counter()

    def any(self) -> bool:
        """Say whether a body comes in now."""
        return self._by_tenant.total() > 0

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Count one more body. Raises RateLimitedError for too many of one tenant's,
        OverloadedError for too many in all."""
        if self._by_tenant[tenant] >= MOST_OF_ONE:
            raise RateLimitedError(f"{MOST_OF_ONE} files are being sent already; wait for them")
        if self._by_tenant.total() >= MOST:
            raise OverloadedError("too many files are being sent; come again shortly")
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._by_tenant -= Counter([tenant])  # drops the entry at zero
