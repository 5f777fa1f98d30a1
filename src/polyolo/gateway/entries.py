"""Holds what tenants own (keys, clients), found by its id, replaced tenant by tenant."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    """Something with an id that belongs to a tenant."""

    @property
    def id(self) -> str:
        """Unique on the platform."""

    @property
    def tenant(self) -> str:
        """The tenant's id."""


E = TypeVar("E", bound=Owned)


class Entries(Generic[E]):
    """All entries of a snapshot. On the loop's thread."""

    def __init__(self) -> None:
        self.by_id: dict[str, E] = {}
        self._of: dict[str, list[str]] = {}

    def put(self, entries: Iterable[E], changed: Set[str] | None) -> list[str]:
        """Put entries in the place of all that these tenants had (None: of all that there are);
        return the ids of those that are gone or replaced."""
        if changed is None:
            replaced = list(self.by_id)
            self.by_id, self._of = {}, {}
        else:
            replaced = [id_ for tenant in changed for id_ in self._of.pop(tenant, ())]
            for id_ in replaced:
                del self.by_id[id_]
        for entry in entries:
            self.by_id[entry.id] = entry
            self._of.setdefault(entry.tenant, []).append(entry.id)
        return replaced
