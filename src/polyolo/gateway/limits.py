"""Bounds what one tenant may have inside the gateway, so that none can fill it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polyolo.errors import PolyoloError


class Bound:
    """Counts what each tenant has inside, and refuses more than a limit."""

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}

    def inside(self, tenant: str) -> int:
        """Return how many the tenant has inside now."""
        return self._inside.get(tenant, 0)

    def counts(self) -> dict[str, int]:
        """Return how many each tenant has inside now."""
        return dict(self._inside)

    @contextmanager
    def admit(self, tenant: str, limit: int, refusal: PolyoloError) -> Iterator[None]:
        """Hold a place for as long as the context lasts; raise `refusal` if all are taken."""
        taken = self._inside.get(tenant, 0)
        if taken >= limit:
            raise refusal
        self._inside[tenant] = taken + 1
        try:
            yield
        finally:
            left = self._inside[tenant] - 1
            if left:
                self._inside[tenant] = left
            else:
                del self._inside[tenant]  # an idle tenant costs nothing
