"""The Open Inference Protocol by gRPC against a runtime."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2 as pb

from tests.integration.runtime import Runtime, eventually, picture, slow, yolov8

SERVICE = "/inference.GRPCInferenceService/"
PICTURE = picture(128, 96)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    runtime.add("city", yolov8(best=0.9), yolov8(best=0.8))
    runtime.add("slow", slow(1500))
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def channel(runtime: Runtime) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{runtime.home}/grpc.sock", options) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, request: Any = None, **options: Any) -> Any:
    """Call a method of the service and return its answer."""
    sent = getattr(pb, f"{method}Request")() if request is None else request
    ask = channel.unary_unary(
        SERVICE + method,
        request_serializer=type(sent).SerializeToString,
        response_deserializer=getattr(pb, f"{method}Response").FromString,
    )
    return ask(sent, **({"timeout": 20} | options))


def refused(channel: grpc.Channel, method: str, request: Any = None, **options: Any) -> Any:
    """Call a method that must fail, and return the failure."""
    with pytest.raises(grpc.RpcError) as failed:
        call(channel, method, request, **options)
    return failed.value


def packed(*pictures: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in pictures)


def asking(*pictures: bytes, model: str = "city", raw: Any = True, **fields: Any) -> Any:
    """Return a ModelInfer request. raw: as raw contents, None for none of either."""
    one = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES")
    one.shape.append(len(pictures))
    if raw is False:
        one.contents.bytes_contents.extend(pictures)
    request = pb.ModelInferRequest(model_name=model, inputs=[one], **fields)
    if raw is True:
        request.raw_input_contents.append(packed(*pictures))
    return request


def array(answer: Any, name: str) -> np.ndarray:
    """Return one output of an answer."""
    at = [output.name for output in answer.outputs].index(name)
    kind = {"FP32": "<f4", "INT32": "<i4"}[answer.outputs[at].datatype]
    return np.frombuffer(answer.raw_output_contents[at], kind).reshape(answer.outputs[at].shape)


def test_health_and_metadata(channel: grpc.Channel):
    """Every call of the service but the one that infers."""
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready
    assert call(channel, "ServerMetadata").name == "polyolo"
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="city")).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="city", version="2")).ready
    model = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="city"))
    assert list(model.versions) == ["1", "2"]
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [("image", "BYTES", [-1])]
    assert [output.name for output in model.outputs] == [
        "num_dets", "det_boxes", "det_scores", "det_classes",
    ]  # fmt: skip
    for method in ("ModelReady", "ModelMetadata"):
        for name, version in (("nope", ""), ("city", "9"), ("city", "x")):
            request = getattr(pb, f"{method}Request")(name=name, version=version)
            assert refused(channel, method, request).code() is grpc.StatusCode.NOT_FOUND


def test_the_standard_health_service(channel: grpc.Channel):
    """Serving for the whole and for the service; an unknown name is not found."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    for service in ("", "inference.GRPCInferenceService"):
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as failed:
        check(health_pb2.HealthCheckRequest(service="x"), timeout=5)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_server_reflection_names_the_services(channel: grpc.Channel):
    """So that grpcurl works without the .proto file."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.strip("/")),
    ]
    listed, found = ask(iter(questions), timeout=5)
    names = {one.name for one in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert found.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("raw", [True, False])
def test_pictures_raw_and_as_contents(channel: grpc.Channel, raw: bool):
    """Both ways in, raw contents out; id, request id and metering come back."""
    ask = channel.unary_unary(
        f"{SERVICE}ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    answer, done = ask.with_call(
        asking(PICTURE, PICTURE, raw=raw, id="mine"),
        metadata=[("x-request-id", "r-1")],
        timeout=20,
    )
    assert (answer.model_name, answer.model_version, answer.id) == ("city", "1", "mine")
    assert array(answer, "num_dets").tolist() == [[2], [2]]
    assert array(answer, "det_boxes").tolist() == [[[16, 16, 80, 80], [20, 4, 40, 44]]] * 2
    assert array(answer, "det_scores").tolist() == [[np.float32(0.9), np.float32(0.6)]] * 2
    assert array(answer, "det_classes").tolist() == [[1, 2]] * 2
    trailing = dict(done.trailing_metadata())
    assert trailing["x-request-id"] == "r-1"
    assert trailing["polyolo-model"] == "city:1"
    assert trailing["polyolo-images"] == "2"
    assert float(trailing["polyolo-engine-ms"]) > 0


def test_a_version_outputs_and_parameters(channel: grpc.Channel):
    """Only what was asked for, of the version asked for, with the settings asked for."""
    request = asking(PICTURE, model_version="2")
    request.parameters["confidence"].double_param = 0.7
    request.parameters["classes"].string_param = "dog,cat"
    request.parameters["max_detections"].int64_param = 5
    for name in ("det_scores", "num_dets"):
        request.outputs.add(name=name)
    answer = call(channel, "ModelInfer", request)
    assert [output.name for output in answer.outputs] == ["det_scores", "num_dets"]
    assert array(answer, "det_scores").tolist() == [[np.float32(0.8)]]


def spoilt() -> Iterator[tuple[str, Any, str]]:
    """Yield requests with something wrong: status, request, words of the sentence."""
    for field, value in (("name", "images"), ("datatype", "UINT8")):
        request = asking(PICTURE)
        setattr(request.inputs[0], field, value)
        yield "INVALID_ARGUMENT", request, "image"
    for shape in ([], [1, 2], [2], [0], [-1], [65]):
        request = asking(PICTURE)
        request.inputs[0].ClearField("shape")
        request.inputs[0].shape.extend(shape)
        yield "INVALID_ARGUMENT", request, ""
    yield "INVALID_ARGUMENT", pb.ModelInferRequest(model_name="city"), "one input"
    request = asking(PICTURE)
    request.inputs.add(name="image")
    yield "INVALID_ARGUMENT", request, "one input"
    yield "INVALID_ARGUMENT", asking(PICTURE, raw=None), "0 elements"
    request = asking(PICTURE)
    request.inputs[0].contents.bytes_contents.append(PICTURE)
    yield "INVALID_ARGUMENT", request, "both"
    request = asking(PICTURE)
    request.raw_input_contents.append(b"")
    yield "INVALID_ARGUMENT", request, "2 entries"
    for raw in (b"\1\0\0", b"\xff\xff\xff\xff", bytes(8)):
        request = asking(PICTURE)
        request.raw_input_contents[0] = raw
        yield "INVALID_ARGUMENT", request, "element"
    yield "INVALID_ARGUMENT", asking(*[b"x"] * 65), "at most 64"
    yield "INVALID_ARGUMENT", asking(PICTURE, b"text"), "image[1]: "
    yield "INVALID_ARGUMENT", asking(PICTURE, PICTURE[:200], raw=False), "image[1]: "
    for name, kind, value in (
        ("confidence", "double_param", 1.5),
        ("conf", "double_param", 0.5),
        ("max_detections", "int64_param", 0),
        ("classes", "string_param", "cow"),
        ("iou", "bool_param", True),
    ):
        request = asking(PICTURE)
        setattr(request.parameters[name], kind, value)
        yield "INVALID_ARGUMENT", request, ""
    request = asking(PICTURE)
    request.outputs.add(name="output0")
    yield "INVALID_ARGUMENT", request, "output0"
    yield "NOT_FOUND", asking(PICTURE, model="nope"), "nope"
    yield "NOT_FOUND", asking(PICTURE, model_version="9"), "city:9"
    yield "NOT_FOUND", asking(PICTURE, model_version="x"), "city:x"


@pytest.mark.parametrize(("status", "request_", "sentence"), list(spoilt()))
def test_a_bad_request_is_told_what_is_wrong(channel, status: str, request_: Any, sentence: str):
    """With the error's status, in its own words, and by name in the trailing metadata."""
    failure = refused(channel, "ModelInfer", request_)
    assert failure.code().name == status
    assert failure.details()
    assert sentence in failure.details()
    assert dict(failure.trailing_metadata())["polyolo-error"]


def test_messages_are_bounded(channel: grpc.Channel):
    """A message above 21 MiB is refused before it is read; one below is judged by its picture."""
    failure = refused(channel, "ModelInfer", asking(bytes(22 * MIB)))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    failure = refused(channel, "ModelInfer", asking(bytes(20 * MIB + 1)))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.details().startswith("image[0]: ")
    assert call(channel, "ServerLive").live


def test_a_passed_deadline_withdraws_the_pictures(runtime: Runtime, channel: grpc.Channel):
    """The queue forgets a call whose client is not waiting any more."""
    failure = refused(channel, "ModelInfer", asking(*[PICTURE] * 8, model="slow"), timeout=0.5)
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    line = 'polyolo_requests_in_flight{model="slow",tenant="t_test"}'
    eventually(lambda: runtime.metric(line) == 0, within=2)
    gone = 'polyolo_requests_total{code="499",model="slow",tenant="t_test"}'
    eventually(lambda: runtime.metric(gone) + runtime.metric(gone.replace("499", "504")) >= 1)


def test_a_model_that_crashes_comes_back_beside_grpc(runtime: Runtime, channel: grpc.Channel):
    """Starting a process again works in a process that speaks gRPC."""
    children = Path(f"/proc/{runtime.process.pid}/task/{runtime.process.pid}/children")
    before = set(children.read_text().split())
    for pid in before:
        os.kill(int(pid), signal.SIGKILL)

    def again() -> bool:
        return len(set(children.read_text().split()) - before) == len(before)

    eventually(again)
    assert len(call(channel, "ModelInfer", asking(PICTURE), timeout=10).outputs) == 4
    assert "fork" not in runtime.log()


def test_calls_in_flight_are_answered_when_the_runtime_ends():
    """SIGTERM: no new calls, the old one gets its answer, exit status 0, no socket in the way."""
    runtime = Runtime()
    runtime.add("slow", slow(400))
    try:
        runtime.start()
        with grpc.insecure_channel(f"unix:{runtime.home}/grpc.sock") as channel:
            ask = channel.unary_unary(
                f"{SERVICE}ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            late = ask.future(asking(PICTURE, PICTURE, model="slow"), timeout=20)
            line = 'polyolo_requests_in_flight{model="slow",tenant="t_test"}'
            eventually(lambda: runtime.metric(line) == 2)
            assert runtime.stop() == 0
            assert len(late.result().outputs) == 4
        assert (runtime.home / "grpc.sock").exists() is False
        runtime.start()
    finally:
        runtime.close()
