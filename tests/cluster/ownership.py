"""Server-side apply as an API server does it: who set which field, and what that means.

After the documented rules of Kubernetes' structured merge: maps merge by key, lists of some names
merge by the keys of their elements, all else is replaced whole. A field that its last owner leaves
out of what it applies is removed.
"""

from __future__ import annotations

import copy
import json
from typing import Any

ELEMENT_KEYS = {
    "containers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "conditions": ("type",),
}
ATOMIC = {"selector", "labelSelector", "nodeSelector", "podSelector", "namespaceSelector"}
IDENTITY = {"apiVersion", "kind"}
SYSTEM = {
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "finalizers",
}

Path = tuple[str, ...]
"""`f:name` for a field, `k:{...}` for an element of a list, `.` for the element as such."""


class ConflictError(Exception):
    """Somebody else owns a field that was to be given another value."""


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Return each field that is owned by itself, with its value."""
    name = path[-1].removeprefix("f:") if path else ""
    if isinstance(value, dict) and (value or not path) and name not in ATOMIC:
        found = {}
        for key, inner in value.items():
            if (not path and key in IDENTITY) or (path == ("f:metadata",) and key in SYSTEM):
                continue
            found |= leaves(inner, (*path, f"f:{key}"))
        return found
    if isinstance(value, list) and value and (keys := element_keys(name, value)):
        found = {}
        for element in value:
            own = (*path, "k:" + json.dumps({key: element[key] for key in keys if key in element}))
            found[(*own, ".")] = None
            found |= leaves(element, own)
        return found
    return {path: value}


def element_keys(name: str, value: list[Any]) -> tuple[str, ...]:
    """Return the keys by which a list's elements are known; none for a list that is one value."""
    if name == "ports" and all(isinstance(one, dict) for one in value):
        if all("containerPort" in one for one in value):
            return ("containerPort", "protocol")
        if all("name" in one for one in value):  # a Service's; a NetworkPolicy's are atomic
            return ("port", "protocol")
    return ELEMENT_KEYS.get(name, ())


class Owners:
    """Who owns which fields of one object."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, str, str], set[Path]] = {}

    def apply(self, live: Any, patch: Any, manager: str, *, force: bool) -> Any:
        """Return `live` with `patch` applied. Raises ConflictError."""
        me = (manager, "Apply", "")
        wanted = leaves(patch)
        for path, value in wanted.items():
            others = [who for who, paths in self.sets.items() if who != me and path in paths]
            if others and get(live, path) != value:
                if not force:
                    raise ConflictError(f"{others[0][0]} owns {'/'.join(path)}")
                for who in others:
                    self.sets[who].discard(path)
        merged = copy.deepcopy(live)
        before = self.sets.get(me, set())
        self.sets[me] = set(wanted)
        # Elements first: without its key's field none would be found any more.
        for path in sorted(before - set(wanted), key=lambda one: (one[-1] != ".", len(one))):
            if not any(path in paths for paths in self.sets.values()):
                remove(merged, path)
        for path, value in wanted.items():
            put(merged, path, copy.deepcopy(value))
        self._drop_empty()
        return merged

    def update(self, before: Any, after: Any, manager: str, subresource: str = "") -> None:
        """Note what somebody changed by another way than apply."""
        old, new = leaves(before), leaves(after)
        changed = {path for path, value in new.items() if path not in old or old[path] != value}
        me = (manager, "Update", subresource)
        for who, paths in self.sets.items():
            self.sets[who] = paths - (old.keys() - new.keys()) - (changed if who != me else set())
        if changed:
            self.sets[me] = self.sets.get(me, set()) | changed
        self._drop_empty()

    def encoded(self) -> list[dict[str, Any]]:
        """Return `metadata.managedFields`."""
        entries = []
        for (manager, operation, subresource), paths in self.sets.items():
            fields: dict[str, Any] = {}
            for path in sorted(paths):
                inner = fields
                for step in path:
                    inner = inner.setdefault(step, {})
            entry = {
                "manager": manager,
                "operation": operation,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields,
            }
            if subresource:
                entry["subresource"] = subresource
            entries.append(entry)
        return entries

    def _drop_empty(self) -> None:
        self.sets = {who: paths for who, paths in self.sets.items() if paths}


def find(elements: Any, step: str) -> Any:
    """Return the element that a `k:` step names."""
    keys = json.loads(step[2:])
    for one in elements if isinstance(elements, list) else ():
        if all(one.get(key) == value for key, value in keys.items()):
            return one
    return None


def get(value: Any, path: Path) -> Any:
    """Return the value at a path; None where there is none."""
    for step in path:
        if step == ".":
            return None
        if step.startswith("k:"):
            value = find(value, step)
        else:
            value = value.get(step[2:]) if isinstance(value, dict) else None
        if value is None:
            return None
    return value


def put(value: Any, path: Path, new: Any) -> None:
    """Set the value at a path, making what is on the way."""
    for number, step in enumerate(path):
        if step == ".":
            return
        last = number == len(path) - 1
        if step.startswith("k:"):
            element = find(value, step)
            if element is None:
                element = json.loads(step[2:])
                value.append(element)
            value = element
        elif last:
            value[step[2:]] = new
        else:
            empty: Any = [] if path[number + 1].startswith("k:") else {}
            if not isinstance(value.get(step[2:]), type(empty)):
                value[step[2:]] = empty
            value = value[step[2:]]


def remove(value: Any, path: Path) -> None:
    """Take the value at a path out, if it is there."""
    if path[-1] == ".":
        elements = get(value, path[:-2])
        element = find(elements, path[-2])
        if element is not None:
            elements.remove(element)
        return
    holder = get(value, path[:-1]) if len(path) > 1 else value
    if isinstance(holder, dict):
        holder.pop(path[-1][2:], None)
