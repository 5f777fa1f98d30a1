"""Looks into an ONNX file's bytes far enough to refuse what must not be opened.

An ONNX file may say that its weights lie in other files. A runtime never opens those: the path
is the uploader's choice. Nothing here decodes a tensor, and no ONNX library is needed.
Source of the field numbers: onnx.proto (onnx/onnx, IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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

# Where a tensor or a node can sit: message type → field number → message type of the field.
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
_MOST_NODES = 100_000
"""Operators of a graph; the largest YOLO has about 1,200."""

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""Domains of operators that the ONNX standard defines."""
_ENGINES_OWN = "com.microsoft"
# fmt: off
_ENGINES_OPERATORS = frozenset([
    "BiasAdd", "BiasGelu", "ConvTransposeWithDynamicPads", "DequantizeLinear", "FastGelu",
    "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "GridSample", "LayerNormalization",
    "MatMulInteger16", "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "Pad",
    "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean",
    "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "SkipLayerNormalization"
])
# fmt: on
"""Operators of ONNX Runtime's own that exports, optimised and quantised ones too, hold. Not among
them: those that read files (EPContext), and those of language models."""


@dataclass(slots=True)
class _Found:
    """What a walk through a file has seen."""

    external: bool = False
    """A tensor whose data lies in another file."""
    nodes: int = 0
    operators: set[tuple[str, str]] = field(default_factory=set)
    """Domain and name of every operator that is used."""
    functions: set[tuple[str, str]] = field(default_factory=set)
    """Domain and name of those that the file itself defines."""


def refuse_unless_self_contained(data: bytes) -> None:
    """Raise ModelRefusedError unless `data` looks like an ONNX file that needs no other file.

    Its weights lie inside, and its operators are the standard's or the engine's own.
    """
    if not data:
        raise ModelRefusedError(f"the file is empty; {_EXPORT}")
    for magic, kind in _FOREIGN:
        if data.startswith(magic):
            raise ModelRefusedError(f"the file is {kind}, not an ONNX model; {_EXPORT}")
    if data[4:8] == b"ORTM":  # ONNX Runtime would open it, past the checks below
        raise ModelRefusedError(f"the file is in ONNX Runtime's own format; {_EXPORT}")
    found = _Found()
    try:
        numbers = {number for number, _, _ in _fields(data, 0, len(data))}
        _walk("Model", data, 0, len(data), 0, found)
    except (IndexError, ValueError):
        raise ModelRefusedError(
            f"the file is not an ONNX model, or is cut off; {_EXPORT}"
        ) from None
    if 7 not in numbers:
        raise ModelRefusedError(f"the file is not an ONNX model: it holds no graph; {_EXPORT}")
    if found.external:
        raise ModelRefusedError(
            "the model's weights lie in other files (external data); save it as one file, for "
            "instance onnx.save(model, path, save_as_external_data=False), and push that"
        )
    if found.nodes > _MOST_NODES:
        raise ModelRefusedError(
            f"the model has more than {_MOST_NODES:,} operators; is it a YOLO model?"
        )
    for domain, name in sorted(found.operators - found.functions):
        if domain not in _STANDARD and (domain, name) not in _OWN:
            raise ModelRefusedError(
                f"the model uses the operator {_quoted(name)} of {_quoted(domain)}, which is not "
                "one of the ONNX standard; export it without plugins and custom operators"
            )


_OWN = frozenset((_ENGINES_OWN, name) for name in _ENGINES_OPERATORS)


def _walk(kind: str, data: bytes, start: int, end: int, depth: int, found: _Found) -> None:
    """Look through a message of that kind, and through all that sits in it."""
    if depth > _DEEPEST:
        raise ValueError("messages nested without end")
    if kind == "Node":
        found.nodes += 1
        found.operators.add((_text(data, start, end, 7), _text(data, start, end, 4)))
        if found.nodes > _MOST_NODES:
            return
    elif kind == "Function":
        found.functions.add((_text(data, start, end, 10), _text(data, start, end, 1)))
    inside = _MESSAGES.get(kind, {})
    for number, first, last in _fields(data, start, end):
        if kind == "Tensor":
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and first != 0):
                found.external = True
                return
        elif last >= 0 and number in inside:
            _walk(inside[number], data, first, last, depth + 1, found)


def _quoted(text: str) -> str:
    return repr(text[:80])


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
    producer: str
    """The program that wrote the file, with its version; empty if it does not say."""
    opset: int
    """Version of the standard's operators; 0 where there are none."""


def names(data: bytes) -> Names:
    """Read the names of a graph's inputs and outputs, and what the file says of itself.

    Raises IndexError, ValueError for a file that `refuse_unless_self_contained` refuses.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    weights: set[str] = set()
    metadata: dict[str, str] = {}
    opset = 0
    for number, start, end in _fields(data, 0, len(data)):
        if number == 8 and _text(data, start, end, 1) in _STANDARD[:2]:  # ModelProto.opset_import
            versions = [value for tag, value, kind in _fields(data, start, end) if tag == 2]
            opset = max(opset, *versions, 0)
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
        producer=f"{_text(data, 0, len(data), 2)} {_text(data, 0, len(data), 3)}".strip(),
        opset=opset,
    )


def _text(data: bytes, start: int, end: int, wanted: int) -> str:
    """Return the string in one field of a message; empty where it has none.

    The last one of several: so does whoever opens the file.
    """
    text = ""
    for number, first, last in _fields(data, start, end):
        if number == wanted and last >= 0:
            text = data[first:last].decode("utf-8", "replace")
    return text
