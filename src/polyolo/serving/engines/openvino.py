"""Runs ONNX graphs with OpenVINO on the CPU, in float32 or in what the CPU computes faster."""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.engines import EXACT, Engine, Options
from polyolo.serving.engines.quote import quote
from polyolo.serving.heads import GraphSignature, TensorInfo
from polyolo.serving.onnxfile import Names, names, refuse_unless_self_contained

# With its converter OpenVINO imports a telemetry client that writes an id into the home directory
# and reports the import. Without it the library is complete, and loads in half the time.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # "cannot be imported"

import openvino as ov  # noqa: E402

_HINTS = {EXACT: "f32", "bfloat16": "bf16", "float16": "f16"}
_NATIVE = {"BF16": "bfloat16", "FP16": "float16"}


def open_engine(data: bytes, options: Options) -> Engine:
    """Open an ONNX file's bytes; see engines.open_engine. Nothing is cached on disk."""
    refuse_unless_self_contained(data)
    try:
        core = ov.Core()
        model = core.read_model(data)
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[options.arithmetic],
                # Else it may compress activations to 8 bits, whatever the hint above says.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
                "NUM_STREAMS": str(options.streams),
                "INFERENCE_NUM_THREADS": str(options.streams),
                "ENABLE_CPU_PINNING": "NO",  # every runtime would pin to the same cores
            },
        )
        return _OpenvinoEngine(compiled, names(data), options.streams)
    except Exception as error:  # noqa: BLE001  # its exceptions share no base class
        raise ModelRefusedError(f"OpenVINO cannot load it: {quote(error)}") from None


def arithmetics() -> tuple[str, ...]:
    """See engines.arithmetics: what the CPU has instructions for."""
    native = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return (EXACT, *(_NATIVE[one] for one in native if one in _NATIVE))


class _OpenvinoEngine:
    """One compiled graph, and an infer request for each stream."""

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: ov.CompiledModel, named: Names, streams: int) -> None:
        # By number: a tensor may bear several names, and not the file's first.
        self._inputs = {
            name: index
            for name in named.inputs
            for index, port in enumerate(compiled.inputs)
            if name in port.get_names()
        }
        self._compiled: ov.CompiledModel | None = compiled
        # Last in, first out: a lone caller keeps to one request's warm buffers.
        self._idle: queue.LifoQueue[ov.InferRequest] = queue.LifoQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())
        self.signature = GraphSignature(
            inputs=tuple(
                _tensor(name, compiled.inputs[index]) for name, index in self._inputs.items()
            ),
            outputs=tuple(
                _tensor(name, port)
                for name, port in zip(named.outputs, compiled.outputs, strict=True)
            ),
            metadata=named.metadata,
        )

    def infer(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph; see Engine. A call beyond the streams waits for one of them."""
        if self._compiled is None:
            raise ModelFailedError("the model was unloaded before this request reached it")
        if feeds.keys() != self._inputs.keys():  # it would take a missing one from the last run
            raise ModelFailedError(f"the model is fed with {', '.join(self._inputs)}")
        request = self._idle.get()
        try:
            given = {self._inputs[name]: array for name, array in feeds.items()}
            outputs = request.infer(given, share_inputs=True)  # outputs are copies
            return [np.asarray(outputs[index]) for index in range(len(outputs))]
        except Exception as error:  # noqa: BLE001  # its exceptions share no base class
            raise ModelFailedError(f"OpenVINO failed in this model: {quote(error)}") from None
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Free the graph; see Engine."""
        self._compiled = None
        self._inputs = {}
        while not self._idle.empty():
            self._idle.get()


def _tensor(name: str, port: Any) -> TensorInfo:
    shape = tuple(side.get_length() if side.is_static else 0 for side in port.get_partial_shape())
    return TensorInfo(name=name, shape=shape, dtype=port.get_element_type().to_dtype().name)
