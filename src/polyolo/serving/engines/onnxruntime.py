"""Runs ONNX graphs with ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from typing import Any

import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.engines import Engine
from polyolo.serving.heads import GraphSignature, TensorInfo
from polyolo.serving.onnxfile import refuse_unless_self_contained

_ONLY_FATAL = 4  # its errors arrive as exceptions; its own lines on stderr would only repeat them


def open_engine(data: bytes) -> Engine:
    """Open an ONNX file's bytes for CPU inference, one thread for each concurrent `infer`.

    Blocks for tens of milliseconds and more, partly with the GIL held. Raises ModelRefusedError
    for what is not a complete, valid graph that this ONNX Runtime can run.
    """
    refuse_unless_self_contained(data)
    options = ort.SessionOptions()
    # One thread a run: concurrent runs of one session fill the cores better than one run that
    # is split over them (164 to 130 pictures a second), and nothing spins between the runs.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Planning each run's memory as one block buys no speed, and with two streams costs 5 MB for
    # YOLOX-Nano and 35 MB for a YOLOv8n at 640.
    options.enable_mem_pattern = False
    options.log_severity_level = _ONLY_FATAL
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # its exceptions share no base class
        raise ModelRefusedError(f"ONNX Runtime cannot load it: {_quote(error)}") from None
    return _OrtEngine(session)


class _OrtEngine:
    """One session, shared by every stream: one copy of the weights."""

    name = "onnxruntime"

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]
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
            raise ModelFailedError(f"ONNX Runtime failed in this model: {_quote(error)}") from None
        return outputs

    def close(self) -> None:
        """Free the session; see Engine."""
        self._session = None


def _tensor(node: Any) -> TensorInfo:
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    shape = tuple(size if isinstance(size, int) else 0 for size in node.shape)
    return TensorInfo(name=node.name, shape=shape, dtype=_DTYPES.get(kind, kind))


_DTYPES = {"float": "float32", "double": "float64"}  # the others bear numpy's names already


def _quote(error: Exception) -> str:
    """Return a foreign error's gist: one line, no paths, at most 200 characters."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", "", text)
    text = re.sub(r"(?:/[\w.+-]+){2,}(?::\d+)?", "…", text)
    return text if len(text) <= 200 else text[:199] + "…"
