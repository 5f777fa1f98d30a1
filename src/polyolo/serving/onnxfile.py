"""Looks into an ONNX file's bytes far enough to refuse what must not be opened.

An ONNX file may say that its weights lie in other files. A runtime never opens those: the path
is the uploader's choice. Nothing here decodes a tensor, and no ONNX library is needed.
Source of the field numbers: onnx.proto (onnx/onnx, IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyolo.errors import ModelRefusedError

_EXPORT = "export the model to ONNX (with its weights inside the file) and push the .onnx file"

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as PyTorch writes its .pt files"),
    (b"\x80\x02", "a Python pickle, as older PyTorch writes its .pt files"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"<", "XML or HTML"),
    (b"{", "JSON"),
)

# Where a TensorProto can sit: message type → field number → message type of the field.
_MESSAGES = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_DEEPEST = 64  # messages within messages; control flow in real models nests two or three graphs


def refuse_unless_self_contained(data: bytes) -> None:
    """Raise ModelRefusedError unless `data` looks like an ONNX file with its weights inside."""
    if not data:
        raise ModelRefusedError(f"the file is empty; {_EXPORT}")
    for magic, kind in _FOREIGN:
        if data.startswith(magic):
            raise ModelRefusedError(f"the file is {kind}, not an ONNX model; {_EXPORT}")
    if data[4:8] == b"ORTM":  # ONNX Runtime would open it, past the checks below
        raise ModelRefusedError(f"the file is in ONNX Runtime's own format; {_EXPORT}")
    try:
        # The reference to another file has the key "location"; where the word does not occur,
        # which is nearly always, there is none, and the walk is spared.
        fields = {number for number, _, _ in _fields(data, 0, len(data))}
        external = b"location" in data and _has_external("Model", data, 0, len(data), 0)
    except (IndexError, ValueError):
        raise ModelRefusedError(
            f"the file is not an ONNX model, or is cut off; {_EXPORT}"
        ) from None
    if 7 not in fields:
        raise ModelRefusedError(f"the file is not an ONNX model: it holds no graph; {_EXPORT}")
    if external:
        raise ModelRefusedError(
            "the model's weights lie in other files (external data); save it as one file, for "
            "instance onnx.save(model, path, save_as_external_data=False), and push that"
        )


def _has_external(kind: str, data: bytes, start: int, end: int, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("messages nested without end")
    for number, first, last in _fields(data, start, end):
        if kind == "Tensor":
            found = number == _TENSOR_EXTERNAL_DATA or (
                number == _TENSOR_DATA_LOCATION and first != 0
            )
        else:
            inner = _MESSAGES[kind].get(number) if last >= 0 else None
            found = inner is not None and _has_external(inner, data, first, last, depth + 1)
        if found:
            return True
    return False


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each field of a protobuf message: (number, start, end), or (number, value, -1)."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value, -1
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field reaches beyond its message")
            yield number, at, at + size
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield number, 0, -1
        else:
            raise ValueError(f"there is no wire type {wire}")
    if at != end:
        raise ValueError("a field reaches beyond its message")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an ONNX file calls things; an engine may call them otherwise."""

    inputs: tuple[str, ...]
    """Without those that are weights."""
    outputs: tuple[str, ...]
    metadata: dict[str, str]


def names(data: bytes) -> Names:
    """Read the names of a graph's inputs and outputs, and the file's metadata.

    Raises IndexError, ValueError for a file that `refuse_unless_self_contained` refuses.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    weights: set[str] = set()
    metadata: dict[str, str] = {}
    for number, start, end in _fields(data, 0, len(data)):
        if number == 14:  # ModelProto.metadata_props
            metadata[_text(data, start, end, 1)] = _text(data, start, end, 2)
        elif number == 7:  # ModelProto.graph
            for inner, first, last in _fields(data, start, end):
                if inner == 5:  # GraphProto.initializer
                    weights.add(_text(data, first, last, 8))
                elif inner == 11:  # GraphProto.input
                    inputs.append(_text(data, first, last, 1))
                elif inner == 12:  # GraphProto.output
                    outputs.append(_text(data, first, last, 1))
    return Names(
        inputs=tuple(name for name in inputs if name not in weights),
        outputs=tuple(outputs),
        metadata=metadata,
    )


def _text(data: bytes, start: int, end: int, wanted: int) -> str:
    """Return the string in one field of a message; empty where it has none."""
    for number, first, last in _fields(data, start, end):
        if number == wanted and last >= 0:
            return data[first:last].decode("utf-8", "replace")
    return ""
