"""Bounds the bytes of all requests' pictures together, from their arrival to their answer."""

from __future__ import annotations

from polyolo.errors import OverloadedError


class ByteBudget:
    """So many bytes that requests may hold at once. For one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        """Return the bytes held now, by all requests."""
        return self._held

    def change(self, size: int) -> None:
        """Hold `size` more bytes, or fewer where negative; OverloadedError beyond the limit."""
        if size > 0 and self._held + size > self._limit:
            raise OverloadedError(
                f"requests in flight hold {self._held / 2**20:.0f} MiB of pictures already; "
                "slow down, or send smaller pictures"
            )
        self._held += size


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._size = 0

    def grow(self, size: int) -> None:
        """Hold `size` more bytes; OverloadedError when the budget has no room for them."""
        self._budget.change(size)
        self._size += size

    def release(self) -> None:
        """Give everything back; twice does no harm."""
        self._budget.change(-self._size)
        self._size = 0
