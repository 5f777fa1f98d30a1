"""The objects of an emulated cluster, with versions, owners and a history, as etcd and the API
server keep them together. One thread only."""

from __future__ import annotations

import copy
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from tests.cluster.defaults import defaulted
from tests.cluster.ownership import ConflictError, Owners

HISTORY = 10_000
"""Events that a watch may go back; older ones are 410 Gone."""

Key = tuple[str, str, str]
"""Collection (`deployments.apps`), namespace, name."""
Object = dict[str, Any]


class RefusalError(Exception):
    """An answer that is not 200: status, reason as Kubernetes words it, message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Store:
    """All objects. check: raises RefusalError for one that the schemas refuse."""

    def __init__(self, check: Callable[[Object], None] = lambda _: None) -> None:
        self.version = 1
        self.objects: dict[Key, Object] = {}
        self.owners: defaultdict[Key, Owners] = defaultdict(Owners)
        self.history: defaultdict[str, deque[tuple[int, str, Object]]] = defaultdict(
            lambda: deque(maxlen=HISTORY)
        )
        self.lost: defaultdict[str, int] = defaultdict(int)
        self.listeners: list[Callable[[str], None]] = []
        self._check = check

    def get(self, key: Key) -> Object:
        found = self.objects.get(key)
        if found is None:
            raise RefusalError(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        return found

    def of(self, collection: str, namespace: str | None = None) -> list[Object]:
        return [
            found
            for (kind, home, _), found in self.objects.items()
            if kind == collection and namespace in (None, home)
        ]

    def create(self, key: Key, made: Object, manager: str) -> Object:
        if key in self.objects:
            raise RefusalError(409, "AlreadyExists", f"{key[0]} {key[2]!r} already exists")
        self._admit(key)
        owners = Owners()
        owners.update({}, made, manager)
        return self._keep(key, made, owners, "ADDED")

    def apply(self, key: Key, patch: Object, manager: str, *, force: bool) -> Object:
        live = self.objects.get(key)
        if live is None:
            self._admit(key)
        owners = copy.deepcopy(self.owners[key]) if live else Owners()
        base = live or {"apiVersion": patch["apiVersion"], "kind": patch["kind"], "metadata": {}}
        try:
            merged = owners.apply(base, patch, manager, force=force)
        except ConflictError as error:
            raise RefusalError(409, "Conflict", str(error)) from None
        merged["metadata"] |= {"name": key[2]} | ({"namespace": key[1]} if key[1] else {})
        return self._keep(key, merged, owners, "MODIFIED" if live else "ADDED")

    def replace(self, key: Key, made: Object, manager: str) -> Object:
        live = self.get(key)
        asked = made["metadata"].get("resourceVersion")
        if asked is not None and asked != live["metadata"]["resourceVersion"]:
            raise RefusalError(409, "Conflict", "the object has been modified")
        owners = copy.deepcopy(self.owners[key])
        owners.update(live, made, manager)
        return self._keep(key, made, owners, "MODIFIED")

    def change(self, key: Key, alter: Callable[[Object], None], manager: str, part: str) -> None:
        """Change an object as a controller does: by its status or scale."""
        live = self.objects.get(key)
        if live is not None:
            made = copy.deepcopy(live)
            alter(made)
            owners = copy.deepcopy(self.owners[key])
            owners.update(live, made, manager, part)
            self._keep(key, made, owners, "MODIFIED")

    def delete(self, key: Key, *, grace_s: int | None = None) -> Object:
        """Delete an object, or mark it where something has to end first."""
        live = self.get(key)
        if live["metadata"].get("deletionTimestamp"):
            return live
        waits = (key[0] == "pods" and live.get("status", {}).get("podIP")) or key[0] == "namespaces"
        if not waits:
            self.drop(key)
            return live

        def mark(made: Object) -> None:
            made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            if grace_s is not None:
                made["metadata"]["deletionGracePeriodSeconds"] = grace_s
            if key[0] == "namespaces":
                made["status"] = {"phase": "Terminating"}

        self.change(key, mark, "apiserver", "status")
        if key[0] == "namespaces":
            for other in [one for one in self.objects if one[1] == key[2]]:
                self.delete(other)
        marked = self.objects[key]
        self.settle()
        return marked

    def settle(self) -> None:
        """Let go of what only waited for others that are gone."""
        for key, found in list(self.objects.items()):
            empty = key[2] not in {one[1] for one in self.objects}
            if key[0] == "namespaces" and empty and "deletionTimestamp" in found["metadata"]:
                self.drop(key)

    def drop(self, key: Key) -> None:
        """Take an object out at once."""
        found = self.objects.pop(key, None)
        if found is not None:
            self.owners.pop(key, None)
            self.version += 1
            last = copy.deepcopy(found)
            last["metadata"]["resourceVersion"] = str(self.version)
            self._tell(key[0], "DELETED", last)

    def since(self, collection: str, version: int) -> list[tuple[int, str, Object]]:
        if version < self.lost[collection]:
            raise RefusalError(410, "Expired", "too old resource version")
        return [event for event in self.history[collection] if event[0] > version]

    def forget_history(self) -> None:
        """Lose the history, as a compaction does."""
        for collection in list(self.history):
            self.history[collection].clear()
            self.lost[collection] = self.version

    def _admit(self, key: Key) -> None:
        if key[1]:
            home = self.objects.get(("namespaces", "", key[1]))
            if home is None:
                raise RefusalError(404, "NotFound", f"namespaces {key[1]!r} not found")
            if home["metadata"].get("deletionTimestamp"):
                raise RefusalError(403, "Forbidden", f"namespace {key[1]} is being terminated")

    def _keep(self, key: Key, made: Object, owners: Owners, event: str) -> Object:
        live = self.objects.get(key)
        given = {k: v for k, v in made.items() if k != "status"}
        if live is None or {k: v for k, v in live.items() if k != "status"} != given:
            bare = copy.deepcopy(given)
            bare["metadata"].pop("managedFields", None)
            self._check(bare)
        kept = defaulted(made)
        metadata = kept["metadata"]
        metadata.pop("managedFields", None)
        if live is None:
            metadata |= {
                "uid": str(uuid.uuid4()),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "generation": 1,
            }
        else:
            for name in ("uid", "creationTimestamp"):
                metadata[name] = live["metadata"][name]
            changed = kept.get("spec") != live.get("spec")
            metadata["generation"] = live["metadata"]["generation"] + changed
            metadata["resourceVersion"] = live["metadata"]["resourceVersion"]
            metadata["managedFields"] = owners.encoded()
            if kept == live:
                return live
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        metadata["managedFields"] = owners.encoded()
        self.objects[key] = kept
        self.owners[key] = owners
        self._tell(key[0], event, kept)
        return kept

    def _tell(self, collection: str, event: str, found: Object) -> None:
        history = self.history[collection]
        if len(history) == HISTORY:
            self.lost[collection] = history[0][0]
        history.append((self.version, event, found))
        for listener in self.listeners:
            listener(collection)
