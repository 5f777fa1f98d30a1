"""What is there of ours in a cluster, kept current by lists and watches: looking costs no call.

It is a copy of the cluster's own state, never more: lost at any moment, it is read again.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from polyolo import telemetry
from polyolo.drivers.kubernetes.cluster import NAMESPACE, POD, Cluster, ClusterError, Kind
from polyolo.drivers.kubernetes.compare import Fields, foreign
from polyolo.drivers.kubernetes.naming import Object

_PAUSE_S = (0.05, 5.0)  # first and longest, while the API server is away
_GONE = 410  # HTTP's status for a version that is too old to go on from

Key = tuple[str, str]
"""Kind and name, within one namespace."""

_encode = msgspec.json.encode
_decode = msgspec.json.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One object, as it was last seen."""

    version: int
    body: bytes
    """JSON without what changes by itself; of pods with their status."""
    foreign: Fields
    """What others than us and controllers have set in it."""

    def object(self) -> Object:
        """Return the object."""
        found: Object = _decode(self.body)
        return found


class Mirror:
    """Threads that follow each kind. `read` and `put` from any thread."""

    def __init__(self, cluster: Cluster, changed: Callable[[str], None]) -> None:
        """Prepare; nothing is asked before `start`. changed: is told the namespace in which
        something is no longer as it was, other than by `put`; called by the mirror's threads."""
        self._cluster = cluster
        self._changed = changed
        self._lock = threading.Lock()
        self._seen: defaultdict[str, dict[Key, Seen]] = defaultdict(dict)
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._ended: dict[tuple[str, Key], int] = {}
        self._closing = threading.Event()
        self._log = telemetry.logger("kubernetes")
        self._current: dict[Kind, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def start(self, kinds: Iterable[Kind], seconds: float) -> None:
        """Begin to follow these kinds, and wait until each has been listed once.

        Raises OSError when that takes too long; then `close`.
        """
        for kind in kinds:
            self._current[kind] = threading.Event()
            thread = threading.Thread(
                target=self._follow, args=(kind,), name=f"watch-{kind.plural}", daemon=True
            )
            self.threads.append(thread)
            thread.start()
        deadline = time.monotonic() + seconds
        for kind, current in self._current.items():
            if not current.wait(max(0.0, deadline - time.monotonic())):
                raise ClusterError(0, f"the API server does not list {kind.plural}")

    def close(self) -> None:
        """Stop; the threads end when the cluster's connections are closed."""
        self._closing.set()

    def read(self, namespace: str) -> tuple[int, dict[Key, Seen]]:
        """Return what is in a namespace, itself included, and a number that changes with all of
        it but the pods."""
        with self._lock:
            return self._turns[namespace], dict(self._seen.get(namespace, {}))

    def namespaces(self) -> list[str]:
        """Return the namespaces in which anything was seen."""
        with self._lock:
            return [name for name, found in self._seen.items() if found]

    def put(self, found: Object) -> None:
        """Note what an answer said of an object, so that the next look knows of it."""
        self._note(found)

    def lost(self, kind: Kind, namespace: str, name: str) -> None:
        """Note that an object is gone: the API server has just said so."""
        key = (kind.kind, name)
        with self._lock:
            known = self._seen.get(namespace, {}).get(key)
            if known is not None:
                self._forget(namespace, key, known.version)

    def _follow(self, kind: Kind) -> None:
        failures = 0
        version = ""
        while not self._closing.is_set():
            try:
                if not version:
                    version = self._list(kind)
                    self._current[kind].set()
                for event, found in self._cluster.watch(kind, version):
                    failures = 0
                    version = found["metadata"]["resourceVersion"]
                    if self._closing.is_set():
                        return
                    changed = self._drop(found) if event == "DELETED" else self._note(found)
                    if changed:
                        self._changed(_home(found))
            except ClusterError as error:
                if error.status == _GONE:
                    version = ""
                    continue
                if self._closing.is_set():
                    return
                failures += 1
                if failures == 1:
                    self._log.warning("a watch broke off", kind=kind.plural, error=str(error))
            except Exception:  # noqa: BLE001  # whatever it was, the thread must live on
                self._log.exception("cannot follow", kind=kind.plural)
                version = ""
                failures += 1
            pause = min(_PAUSE_S[0] * 2 ** min(failures, 10), _PAUSE_S[1])
            self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  # only spreads

    def _list(self, kind: Kind) -> str:
        found, version = self._cluster.list(kind)
        there = {(_home(one), one["metadata"]["name"]) for one in found}
        with self._lock:
            known = [
                (home, key)
                for home, objects in self._seen.items()
                for key, seen in objects.items()
                if key[0] == kind.kind and seen.version <= int(version)
            ]
        changed = {_home(one) for one in found if self._note({**one, **_typed(kind)})}
        for home, key in known:
            if (home, key[1]) not in there:
                with self._lock:
                    self._forget(home, key, int(version))
                changed.add(home)
        for home in changed:
            self._changed(home)
        return version

    def _note(self, found: Object) -> bool:
        """Keep an object; say whether it differs from what was known."""
        home, key = _home(found), (found["kind"], found["metadata"]["name"])
        version = int(found["metadata"]["resourceVersion"])
        fresh = Seen(version=version, body=_encode(_lean(found)), foreign=foreign(found))
        with self._lock:
            if self._ended.get((home, key), -1) >= version:
                return False
            known = self._seen[home].get(key)
            if known is not None and known.version >= version:
                return False
            self._seen[home][key] = fresh
            if known is not None and (known.body, known.foreign) == (fresh.body, fresh.foreign):
                return False
            if key[0] != POD.kind:
                self._turns[home] += 1
            return True

    def _drop(self, found: Object) -> bool:
        home, key = _home(found), (found["kind"], found["metadata"]["name"])
        with self._lock:
            return self._forget(home, key, int(found["metadata"]["resourceVersion"]))

    def _forget(self, home: str, key: Key, version: int) -> bool:
        """Forget an object, and let no older answer bring it back. With the lock."""
        known = self._seen.get(home, {}).get(key)
        if known is None or known.version > version:
            return False
        del self._seen[home][key]
        self._turns[home] += 1
        self._ended[home, key] = version
        if not self._seen[home]:
            del self._seen[home]  # `_turns` stays: an old number must not come to mean anew
            for ended in [one for one in self._ended if one[0] == home and one[1] != key]:
                del self._ended[ended]
        return True


def _home(found: Object) -> str:
    """Return the namespace that an object is in, or is."""
    metadata = found["metadata"]
    home: str = metadata.get("namespace") or metadata["name"]
    return home


def _typed(kind: Kind) -> dict[str, str]:
    """Return what lists leave out of their items."""
    return {"apiVersion": kind.api_version, "kind": kind.kind}


def _lean(found: Object) -> Object:
    """Return an object without what nobody here reads, and what changes by itself."""
    metadata = {
        name: value
        for name, value in found["metadata"].items()
        if name not in ("managedFields", "resourceVersion", "generation")
    }
    lean = {**found, "metadata": metadata}
    if found["kind"] == POD.kind:
        return {"kind": POD.kind, "metadata": metadata, "status": found.get("status", {})}
    if found["kind"] != NAMESPACE.kind:
        lean.pop("status", None)
    return lean
