"""What a live object lacks of a rendered one, and what others have put into it.

A server fills in defaults and leaves out what is empty, so a live object is as it should be when
it contains what was rendered, and nobody but controllers has set anything else in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from polyolo.drivers.kubernetes.naming import Object

MANAGER = "polyolo"
"""Field manager of all that is rendered."""
STARTER = "polyolo-start"
"""Field manager of the first number of replicas, which an autoscaler takes over."""

Fields = dict[str, Any]
"""A set of fields, nested as in `metadata.managedFields` (FieldsV1)."""


def lacks(live: Any, rendered: Any) -> bool:
    """Say whether `live` does not contain `rendered`.

    Maps may have more keys, lists must be as long; what is empty or zero may be left out.
    """
    if isinstance(rendered, Mapping):
        if not isinstance(live, Mapping):
            return bool(rendered)
        return any(lacks(live.get(name), value) for name, value in rendered.items())
    if isinstance(rendered, Sequence) and not isinstance(rendered, str):
        if not isinstance(live, Sequence) or isinstance(live, str):
            return bool(rendered)
        return len(live) != len(rendered) or any(map(lacks, live, rendered))
    return bool(live != rendered and not (live is None and not rendered))


def foreign(live: Object) -> Fields:
    """Return what people and programs other than controllers have set in an object of ours.

    Marks (labels, annotations) are anybody's, at any depth: they start no process and open no way.
    """
    found: Fields = {}
    for entry in live.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") not in (MANAGER, STARTER) and not entry.get("subresource"):
            _merge(found, entry.get("fieldsV1") or {})
    return _of_ours(found)


def without(live: Any, fields: Fields, rendered: Any) -> Any:
    """Return what is live without the foreign fields that are not rendered too.

    fields: as `foreign` returns them. A list's element is named by its keys there
    (`k:{"name":"http"}`).
    """
    if isinstance(live, Mapping):
        wanted = rendered if isinstance(rendered, Mapping) else {}
        kept = {}
        for name, value in live.items():
            inner = fields.get(f"f:{name}")
            if inner is None:
                kept[name] = value
            elif name in wanted:
                kept[name] = without(value, inner, wanted[name])
            elif set(inner) - {"."} and (rest := without(value, inner, None)):
                kept[name] = rest
        return kept
    if isinstance(live, list):
        named = [(_keys(name), inner) for name, inner in fields.items() if name.startswith("k:")]
        left = []
        for value in live:
            keys, inner = next((one for one in named if _fits(value, one[0])), (None, {}))
            if keys is None:
                left.append(value)
                continue
            match = next((one for one in rendered or () if _fits(one, keys)), None)
            if match is not None:
                left.append(without(value, inner, match))
        return left
    return live


def _keys(name: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(name.removeprefix("k:"), type=dict[str, Any])
    return found


def _fits(element: Any, keys: Mapping[str, Any]) -> bool:
    return isinstance(element, Mapping) and all(
        element.get(name) == value for name, value in keys.items()
    )


def _merge(into: Fields, other: Fields) -> None:
    for name, inner in other.items():
        _merge(into.setdefault(name, {}), inner)


def _of_ours(fields: Fields) -> Fields:
    """Return the fields less the marks and the reports of controllers."""
    left = {}
    for name, inner in fields.items():
        if name not in ("f:metadata", "f:status"):
            rest = _of_ours(inner)
            if rest or not inner:
                left[name] = rest
    return left
