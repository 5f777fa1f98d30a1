"""What a graph says of itself: its tensors, its metadata, and the class names therein."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polyolo.errors import InvalidValueError, ModelRefusedError

UNCOUNTED = 1000
"""Placeholder names (`class_0` …) of a graph that tells neither how many classes it has nor their
names. No label outside of 0 to 999 is believed then; LVIS, the largest usual set, has 1203."""

_MOST_NAME_BYTES = 256 * 1024  # of the metadata entry; LVIS's 1203 names are 30 kB
_LONGEST_NAME = 200  # characters: a name goes into every detection of every answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    """0 where dynamic."""
    dtype: str
    """As numpy names it: float32, float16, uint8, int64 …"""

    def __str__(self) -> str:
        sides = ",".join(str(side) if side else "?" for side in self.shape)
        return f"{self.name!r} [{sides}] {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSignature:
    """All that can be seen of a graph from outside."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        inputs = ", ".join(str(one) for one in self.inputs[:8]) or "none"
        outputs = ", ".join(str(one) for one in self.outputs[:8]) or "none"
        return f"inputs {inputs}; outputs {outputs}"


def class_names(
    signature: GraphSignature, count: int, supplied: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the class names by id: the metadata's, else the supplied ones, else class_0 ….

    count: classes that the head can give (Head.classes); 0 where the graph does not tell. Names
    may be one fewer than the classes of a graph with a spare last class (see `has_spare_class`).
    Raises InvalidValueError when the supplied names are not `count` many, ModelRefusedError when
    the metadata's are not.
    """
    accepted = (0, count - 1, count) if has_spare_class(signature) else (0, count)
    if count and len(supplied) not in accepted:
        raise InvalidValueError(
            f"{len(supplied)} class names are supplied, but the model has {count} classes"
        )
    for name in supplied:
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidValueError(f"a class name must have 1 to {_LONGEST_NAME} characters")
    own = names_in(signature.metadata)
    if count and len(own) not in accepted:
        raise ModelRefusedError(
            f"its metadata names {len(own)} classes, but its outputs have room for {count}: it "
            f"gives something else than plain boxes, or was exported wrongly ({signature})"
        )
    return (
        own
        or tuple(_clean(name) for name in supplied)
        or tuple(f"class_{id_}" for id_ in range(count or UNCOUNTED))
    )


def has_spare_class(signature: GraphSignature) -> bool:
    """Tell whether the last class may have no name: RF-DETR keeps DETR's "no object" column."""
    return {"dets", "labels"} <= {one.name for one in signature.outputs}


def names_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names out of a graph's metadata; none where there are no readable ones.

    Understands what exporters write under `names`: Python's "{0: 'person', …}" or a list
    (Ultralytics), or JSON of either. Gaps in the numbering are filled with class_<id>.
    """
    text = metadata.get("names", "").strip()
    if not 0 < len(text) <= _MOST_NAME_BYTES:
        return ()
    value = _literal(text)
    if isinstance(value, Mapping):
        try:
            by_id = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            return ()
        if not by_id or min(by_id) < 0 or max(by_id) > 2 * len(by_id) + UNCOUNTED:
            return ()
        value = [by_id.get(id_, f"class_{id_}") for id_ in range(max(by_id) + 1)]
    if not isinstance(value, list | tuple):
        return ()
    return tuple(_clean(str(name)) or f"class_{id_}" for id_, name in enumerate(value))


def _clean(name: str) -> str:
    """Return a name that can be written as UTF-8, which half a surrogate pair cannot."""
    return name[:_LONGEST_NAME].encode("utf-8", "replace").decode()


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as documented
        return None


def image_size(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (height, width) out of Ultralytics' metadata `imgsz`, as in "[640, 640]"; or None."""
    text = metadata.get("imgsz", "")
    value = _literal(text) if 0 < len(text) < 100 else None
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list | tuple) and len(value) == 2:
        height, width = value
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    return None
