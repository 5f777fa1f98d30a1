"""Runs ONNX graphs with ONNX Runtime: on the CPU, or on an NVIDIA GPU where its build can."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from numpy.typing import NDArray

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.engines import EXACT, Engine, Options
from polyolo.serving.engines.quote import quote
from polyolo.serving.heads import GraphSignature, TensorInfo
from polyolo.serving.onnxfile import refuse_unless_self_contained

# Read when the library is loaded. Its wheels report to their maker unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types

_ONLY_FATAL = 4  # its errors arrive as exceptions; its own lines on stderr would only repeat them
_CPU, _CUDA, _TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
_DEVICES = {_CPU: "cpu", _CUDA: "cuda", _TENSORRT: "tensorrt"}

Providers = list[tuple[str, dict[str, str]]]


def open_engine(data: bytes, options: Options) -> Engine:
    """Open an ONNX file's bytes; see engines.open_engine."""
    refuse_unless_self_contained(data)
    settings = ort.SessionOptions()
    # One thread a run: concurrent runs of one session fill the cores better than one run that
    # is split over them (164 to 130 pictures a second), and nothing spins between the runs.
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    # Planning each run's memory as one block buys no speed, and with two streams costs 5 MB for
    # YOLOX-Nano and 35 MB for a YOLOv8n at 640.
    settings.enable_mem_pattern = False
    settings.log_severity_level = _ONLY_FATAL
    wanted = providers(options.arithmetic, ort.get_available_providers())
    try:
        return _OrtEngine(ort.InferenceSession(data, settings, providers=wanted))
    except Exception as error:  # noqa: BLE001  # its exceptions share no base class
        raise ModelRefusedError(f"ONNX Runtime cannot load it: {quote(error)}") from None


def arithmetics() -> tuple[str, ...]:
    """See engines.arithmetics. On the CPU of an x86 machine it has nothing besides float32."""
    return (EXACT, "float16") if _TENSORRT in ort.get_available_providers() else (EXACT,)


def providers(arithmetic: str, available: Collection[str]) -> Providers:
    """Return what is to run the graph, best first, out of what this build has.

    TensorRT is only for float16: by default it rounds float32 to TF32's 10 bits, as CUDA does
    unless told not to.
    """
    chosen: Providers = []
    if arithmetic == "float16" and _TENSORRT in available:
        chosen.append((_TENSORRT, {"trt_fp16_enable": "1"}))
    if _CUDA in available:
        chosen.append((_CUDA, {"use_tf32": "0" if arithmetic == EXACT else "1"}))
    return [*chosen, (_CPU, {})]


class _OrtEngine:
    """One session, shared by every stream: one copy of the weights."""

    name = "onnxruntime"

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]
        # The session's own word: a provider that finds no device is left out.
        self.device = _DEVICES.get(session.get_providers()[0], "cpu")
        self.signature = GraphSignature(
            inputs=tuple(_tensor(one) for one in session.get_inputs()),
            outputs=tuple(_tensor(one) for one in session.get_outputs()),
            metadata=dict(session.get_modelmeta().custom_metadata_map),
        )

    def infer(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph; see Engine."""
        session = self._session
        if session is None:
            raise ModelFailedError("the model was unloaded before this request reached it")
        try:
            outputs: list[NDArray[Any]] = session.run(self._outputs, feeds)
        except Exception as error:  # noqa: BLE001  # its exceptions share no base class
            raise ModelFailedError(f"ONNX Runtime failed in this model: {quote(error)}") from None
        return outputs

    def close(self) -> None:
        """Free the session; see Engine."""
        self._session = None


def _tensor(node: Any) -> TensorInfo:
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    shape = tuple(size if isinstance(size, int) else 0 for size in node.shape)
    return TensorInfo(name=node.name, shape=shape, dtype=_DTYPES.get(kind, kind))


_DTYPES = {"float": "float32", "double": "float64"}  # the others bear numpy's names already
