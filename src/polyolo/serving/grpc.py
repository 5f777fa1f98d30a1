"""The Open Inference Protocol v2 by gRPC, with health and server reflection.

Imported once HTTP is up and the first model loads, so that it delays neither.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from polyolo import rpc
from polyolo.errors import InvalidValueError, MalformedRequestError
from polyolo.rpc import Context
from polyolo.serving import inference
from polyolo.serving import inference_pb2 as pb
from polyolo.serving.budget import Share
from polyolo.serving.inference import Question
from polyolo.serving.inference_rest import OVERHEAD
from polyolo.serving.runtime import Reached, Runtime, deadline, measured, metering

SERVICE = "inference.GRPCInferenceService"

_LONGEST_S = 600.0  # the longest time that a client may allow, by HTTP too


async def start(runtime: Runtime, target: str) -> Any:
    """Start the server and return it, a grpc.aio.Server. Raises OSError."""
    server = rpc.server(
        (_service(runtime), rpc.health(partial(_not_ready, runtime), [SERVICE])),
        max_bytes=runtime.limits.max_bytes + OVERHEAD,
    )
    reflection.enable_server_reflection((SERVICE, rpc.HEALTH, reflection.SERVICE_NAME), server)
    await rpc.listen(server, target)
    return server


async def _not_ready(runtime: Runtime) -> str:
    return runtime.repository.not_ready()


def _service(runtime: Runtime) -> Any:
    handlers: dict[str, Callable[[Runtime, Any, Context, str], Any]] = {
        "ServerLive": _server_live,
        "ServerReady": _server_ready,
        "ServerMetadata": _server_metadata,
        "ModelReady": _model_ready,
        "ModelMetadata": _model_metadata,
        "ModelInfer": _model_infer,
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            rpc.answering(partial(handle, runtime)),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name, handle in handlers.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


async def _server_live(_: Runtime, __: Any, ___: Context, ____: str) -> pb.ServerLiveResponse:
    return pb.ServerLiveResponse(live=True)


async def _server_ready(runtime: Runtime, _: Any, __: Context, ___: str) -> pb.ServerReadyResponse:
    return pb.ServerReadyResponse(ready=not runtime.repository.not_ready())


async def _server_metadata(
    _: Runtime, __: Any, ___: Context, ____: str
) -> pb.ServerMetadataResponse:
    said = inference.ServerMetadata()
    return pb.ServerMetadataResponse(
        name=said.name, version=said.version, extensions=said.extensions
    )


async def _model_ready(
    runtime: Runtime, request: pb.ModelReadyRequest, _: Context, __: str
) -> pb.ModelReadyResponse:
    return pb.ModelReadyResponse(
        ready=not inference.why_not(runtime, request.name, request.version)
    )


async def _model_metadata(
    runtime: Runtime, request: pb.ModelMetadataRequest, _: Context, __: str
) -> pb.ModelMetadataResponse:
    said = inference.metadata(runtime, request.name, request.version)
    tensors = [
        [
            pb.ModelMetadataResponse.TensorMetadata(
                name=one.name, datatype=one.datatype, shape=one.shape
            )
            for one in side
        ]
        for side in (said.inputs, said.outputs)
    ]
    return pb.ModelMetadataResponse(
        name=said.name,
        versions=said.versions,
        platform=said.platform,
        inputs=tensors[0],
        outputs=tensors[1],
    )


async def _model_infer(
    runtime: Runtime, request: pb.ModelInferRequest, context: Context, request_id: str
) -> pb.ModelInferResponse:
    return await measured(runtime, partial(_infer, runtime, request, context, request_id))


async def _infer(
    runtime: Runtime,
    request: pb.ModelInferRequest,
    context: Context,
    request_id: str,
    reached: Reached,
) -> pb.ModelInferResponse:
    left = context.time_remaining()
    timeout_s = runtime.timeout_s if left is None else min(left, _LONGEST_S)
    async with deadline(timeout_s):
        with ExitStack() as held:
            share = Share(runtime.budget)
            held.callback(share.release)
            share.grow(request.ByteSize())
            question = _read(request)
            outputs, found = await inference.infer(runtime, question, request_id, reached)
    headers = {"x-request-id": request_id, **metering(found)}
    context.set_trailing_metadata(tuple(headers.items()))
    return pb.ModelInferResponse(
        model_name=found[0].ref.name,
        model_version=str(found[0].ref.version),
        id=request.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=output.tensor.name,
                datatype=output.tensor.datatype,
                shape=output.tensor.shape,
            )
            for output in outputs
        ],
        raw_output_contents=[output.raw for output in outputs],
    )


def _read(request: pb.ModelInferRequest) -> Question:
    """Read a request. Raises MalformedRequestError, InvalidValueError, NotFoundError."""
    for output in request.outputs:
        if len(output.parameters):
            raise InvalidValueError(f"the output {output.name[:40]!r} takes no parameters")
    settings = {name: _text(name, value) for name, value in request.parameters.items()}
    return Question(
        asked=inference.asked(request.model_name, request.model_version, settings),
        pictures=_pictures(request),
        outputs=inference.wanted(output.name for output in request.outputs),
    )


def _text(name: str, parameter: pb.InferParameter) -> str:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidValueError(f"the parameter {name[:40]!r} has no value")
    return str(getattr(parameter, kind))


def _pictures(request: pb.ModelInferRequest) -> list[bytes]:
    one = request.inputs[0] if len(request.inputs) else pb.ModelInferRequest.InferInputTensor()
    names = [each.name for each in request.inputs[:8]]
    count = inference.check_input(names, one.datatype, one.shape)
    if len(one.parameters):
        raise InvalidValueError("the input image takes no parameters; its elements come with it")
    elements, raw = one.contents.bytes_contents, request.raw_input_contents
    if len(elements) and len(raw):
        raise MalformedRequestError(
            "the input's elements stand both in contents and in raw_input_contents; send one"
        )
    if len(raw) > 1:
        raise MalformedRequestError(f"raw_input_contents has {len(raw)} entries for one input")
    if len(raw):
        return inference.split_bytes(raw[0], count)
    inference.check_count(elements, count)
    return list(elements)
