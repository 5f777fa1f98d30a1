"""Runs PyTorch's exported programs (.pt2) and TorchScript archives on the CPU, where trusted.

Such a file is a program. Loading a .pt2 evaluates expressions and may unpickle, whatever
`weights_only` says; a TorchScript archive may call any of PyTorch's operators, those that read
files too. So none is opened unless the operator vouches for every file: POLYOLO_TRUST_TORCH=1.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.engines import EXACT, Engine, Options
from polyolo.serving.engines.quote import quote
from polyolo.serving.heads import GraphSignature, TensorInfo
from polyolo.serving.heads.signature import image_size
from polyolo.serving.torchfile import kind

TRUST = "POLYOLO_TRUST_TORCH"
_ABOUT = "config.txt"  # where Ultralytics' exporter keeps names, imgsz and batch, as JSON
_EXPORT = "export the model to ONNX and push the .onnx file"


def open_engine(data: bytes, options: Options) -> Engine:
    """Open an archive's bytes; see engines.open_engine. Settings of PyTorch are process-wide."""
    found = kind(data)
    if found is None:
        raise ModelRefusedError(
            "the file is neither an exported program (.pt2) nor a TorchScript archive; pickles are "
            f"never opened: {_EXPORT}"
        )
    if os.environ.get(TRUST) != "1":
        raise ModelRefusedError(
            f"the file is a PyTorch {found}, which is a program, and this platform runs no "
            f"programs of others: {_EXPORT}"
        )
    torch.set_num_threads(1)  # one thread a run, as many runs as streams
    try:
        opened = _open_exported(data) if found == "exported program" else _open_script(data)
        return _TorchEngine(*opened, options.arithmetic)
    except ModelRefusedError:
        raise
    except Exception as error:  # noqa: BLE001  # its exceptions share no base class
        raise ModelRefusedError(f"PyTorch cannot load this {found}: {quote(error)}") from None


def arithmetics() -> tuple[str, ...]:
    """See engines.arithmetics."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  # the public is_bf16_supported is for GPUs
    return (EXACT, "bfloat16") if native else (EXACT,)


Program = Callable[..., Any]


def _open_exported(data: bytes) -> tuple[Program, GraphSignature]:
    about = {_ABOUT: ""}
    program = torch.export.load(io.BytesIO(data), extra_files=about)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    outputs = [str(name) for name in program.graph_signature.user_outputs]
    signature = GraphSignature(
        inputs=tuple(_tensor(name, values[name]) for name in inputs),
        outputs=tuple(_tensor(f"output{i}", values[name]) for i, name in enumerate(outputs)),
        metadata=_metadata(about[_ABOUT]),
    )
    return program.module(), signature


def _open_script(data: bytes) -> tuple[Program, GraphSignature]:
    """A script tells no sizes: they come from its exporter's notes, and from a run on zeros."""
    about = {_ABOUT: ""}
    script = torch.jit.load(io.BytesIO(data), map_location="cpu", _extra_files=about).eval()
    metadata = _metadata(about[_ABOUT])
    size = image_size(metadata)
    if size is None:
        raise ModelRefusedError(
            f"the TorchScript archive does not say its input size (imgsz in {_ABOUT}); export it "
            "as Ultralytics does, or to ONNX"
        )
    batch = int(metadata.get("batch", "1"))
    picture = torch.zeros(batch, 3, *size)
    with torch.inference_mode():
        outputs = _flat(script(picture))
    signature = GraphSignature(
        inputs=(_tensor("images", picture),),
        outputs=tuple(_tensor(f"output{i}", one) for i, one in enumerate(outputs)),
        metadata=metadata,
    )
    return script, signature


class _TorchEngine:
    """One program, shared by every stream."""

    name = "torch"
    device = "cpu"

    def __init__(self, program: Program, signature: GraphSignature, arithmetic: str) -> None:
        self._program: Program | None = program
        self._fast = arithmetic == "bfloat16"
        self.signature = signature

    def infer(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the program; see Engine."""
        program = self._program
        if program is None:
            raise ModelFailedError("the model was unloaded before this request reached it")
        try:
            given = [torch.from_numpy(feeds[one.name]) for one in self.signature.inputs]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._fast):
                outputs = _flat(program(*given))
            return [_array(one) for one in outputs]
        except Exception as error:  # noqa: BLE001  # its exceptions share no base class
            raise ModelFailedError(f"PyTorch failed in this model: {quote(error)}") from None

    def close(self) -> None:
        """Free the program; see Engine."""
        self._program = None


def _flat(outputs: Any) -> list[torch.Tensor]:
    """Return the tensors of nested tuples and lists, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Sequence):
        return [one for inner in outputs for one in _flat(inner)]
    return []


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _tensor(name: str, value: Any) -> TensorInfo:
    shape = tuple(side if isinstance(side, int) else 0 for side in value.shape)
    return TensorInfo(name=name, shape=shape, dtype=str(value.dtype).removeprefix("torch."))


def _metadata(text: str | bytes) -> dict[str, str]:
    try:
        about = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(about, dict):
        return {}
    return {
        str(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in about.items()
    }
