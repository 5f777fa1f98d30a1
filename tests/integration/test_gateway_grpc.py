"""The gateway's door for gRPC between real sockets: who gets in, and what crosses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from polyolo.types import TenantState
from tests.integration.gateway_parts import Platform, bearer, entry, key, platform, route, until

# Hold gRPC's engine for the whole session, as a gateway does: when its last object goes, its
# thread is joined by whichever thread collects the garbage, which may be for ever.
grpc.aio.init_grpc_aio()

SERVICE = "/inference.GRPCInferenceService/"
MIB = 1024 * 1024


class Behind(grpc.GenericRpcHandler):
    """A runtime's gRPC side that answers with bytes and remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[str, bytes, dict[str, str]]] = []
        self.hold: asyncio.Event | None = None
        self.cancelled = 0

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def answer(message: bytes, context: Any) -> bytes:
            self.calls.append((method, message, dict(context.invocation_metadata())))
            if self.hold is not None:
                try:
                    await self.hold.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            if message == b"bad":
                trailing = (("polyolo-error", "undecodable-image"),)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "image[0]: bad", trailing)
            if message == b"broken":
                await context.abort(grpc.StatusCode.UNKNOWN, "/secret/path")
            context.set_trailing_metadata(
                (
                    ("polyolo-model", "pcb:2"),
                    ("polyolo-images", "3"),
                    ("polyolo-engine-ms", "8.5"),
                )
            )
            return self.name.encode() + message

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def doors(**changes: Any) -> AsyncIterator[tuple[Platform, dict[str, Behind], Any]]:
    """Run a gateway with its gRPC door before the runtimes of tenants a and b."""
    async with platform(**changes) as made:
        behind = {letter: Behind(letter) for letter in "ab"}
        servers = []
        for letter, handler in behind.items():
            (made.home / letter).mkdir()
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
            server.add_generic_rpc_handlers((handler,))
            server.add_insecure_port(f"unix:{made.home}/{letter}/grpc.sock")
            await server.start()
            servers.append(server)
        made.publish(*(route(n, made.home / n / "runtime.sock", max_in_flight=4) for n in "ab"))
        await made.revision()
        servers.append(await made.doors.grpc.open("127.0.0.1", made.port))
        options = [("grpc.max_send_message_length", -1)]
        target = f"127.0.0.1:{made.port + 1}"
        async with grpc.aio.insecure_channel(target, options) as channel:
            yield made, behind, channel
        for server in reversed(servers):
            await server.stop(0)


async def ask(
    channel: Any, message: bytes, metadata: dict[str, str], method: str = "ModelInfer"
) -> tuple[bytes, dict[str, str]]:
    """Call through the gateway; return the answer and its trailing metadata."""
    going = channel.unary_unary(SERVICE + method)(
        message, metadata=list(metadata.items()), timeout=10
    )
    answer = await going
    return answer, dict(await going.trailing_metadata())


async def fails(channel: Any, message: bytes, metadata: dict[str, str], **more: str) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ask(channel, message, metadata, **more)
    return failed.value


async def test_a_call_goes_to_the_tenants_runtime_and_back():
    """Bytes in, bytes out; credentials stay at the door; usage counts the three pictures."""
    async with doors() as (made, behind, channel):
        sent = bearer("a") | {
            "x-request-id": "r-1", "traceparent": "00-1", "polyolo-model": "x", "cookie": "c",
        }  # fmt: skip
        answer, trailing = await ask(channel, b"hello", sent)
        assert answer == b"ahello"
        assert trailing["x-request-id"] == "r-1"
        assert not [name for name in trailing if name.startswith("polyolo-")]
        method, _, metadata = behind["a"].calls[0]
        assert method == f"{SERVICE}ModelInfer"
        assert metadata["x-request-id"] == "r-1"
        assert metadata["traceparent"] == "00-1"
        assert not {"authorization", "x-api-key", "cookie", "polyolo-model"} & set(metadata)
        answer, _ = await ask(channel, b"", {"x-api-key": key("b")}, method="ServerLive")
        assert answer == b"b"
        await until(lambda: made.control.usage)
        (record,) = made.control.usage.values()
        assert (record.tenant, record.status, record.images) == ("t_a", 200, 3)
        assert (record.model, record.version, record.bytes_in) == ("pcb", 2, 5)
        wanted = 'polyolo_requests_total{code="200",model="pcb",tenant="tenant-a"} 1.0'
        assert wanted in await made.metrics()


async def test_who_is_not_known_or_not_allowed_gets_no_further():
    """The same answers as by HTTP, before the message is read."""
    async with doors() as (made, behind, channel):
        suspended = route("b", None)
        made.publish(
            type(suspended)(
                tenant="t_b", name="tenant-b", state=TenantState.SUSPENDED,
                plan=suspended.plan, phase=suspended.phase,
            ),
            keys=[entry("a"), entry("b"), entry("c", tenant="t_a", scopes=("models:read",))],
        )  # fmt: skip
        await made.revision()
        for metadata, status in (
            ({}, "UNAUTHENTICATED"),
            ({"authorization": "Basic eDp5"}, "UNAUTHENTICATED"),
            (bearer("d"), "UNAUTHENTICATED"),
            ({"x-api-key": key("a")[:-1] + "x"}, "UNAUTHENTICATED"),
            (bearer("a") | {"x-api-key": key("c")}, "UNAUTHENTICATED"),
            (bearer("b"), "PERMISSION_DENIED"),
            (bearer("c"), "PERMISSION_DENIED"),
        ):
            failure = await fails(channel, bytes(3 * MIB), metadata)
            assert failure.code().name == status, metadata
            assert failure.details()
        assert behind["a"].calls == behind["b"].calls == []


async def test_errors_cross_the_door_as_what_they_are():
    """The runtime's own words do; a library's, which may name paths, do not."""
    async with doors() as (made, _, channel):
        failure = await fails(channel, b"bad", bearer("a"))
        assert (failure.code().name, failure.details()) == ("INVALID_ARGUMENT", "image[0]: bad")
        failure = await fails(channel, b"broken", bearer("a"))
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert "secret" not in failure.details()
        failure = await fails(channel, bytes(22 * MIB), bearer("a"))
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/runtime.Control/Stop")(b"", metadata=bearer("a").items())
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await until(lambda: len(made.control.usage) >= 2)
        assert {422, 503} <= {record.status for record in made.control.usage.values()}


async def test_too_many_at_once_and_a_client_that_hangs_up():
    """Four are let in, the fifth is told to come again; cancelling reaches the runtime."""
    async with doors() as (made, behind, channel):
        behind["a"].hold = asyncio.Event()
        going = [asyncio.create_task(ask(channel, b"x", bearer("a"))) for _ in range(4)]
        await until(lambda: len(behind["a"].calls) == 4)
        failure = await fails(channel, b"x", bearer("a"))
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert "too many" in failure.details()
        answer, _ = await ask(channel, b"x", bearer("b"))
        assert answer == b"bx", "another tenant is not concerned"
        for task in going:
            task.cancel()
        await until(lambda: behind["a"].cancelled == 4)
        await made.in_flight("a", 0)
        await until(lambda: [r.status for r in made.control.usage.values()].count(499) == 4)


async def test_rates_and_quotas_hold_here_too():
    """RESOURCE_EXHAUSTED, with the fields of HTTP's answers in the metadata of every answer."""
    async with doors() as (made, behind, channel):
        socket = made.home / "a" / "runtime.sock"
        made.publish(route("a", socket, requests_per_second=0.01, burst=2))
        await made.revision()
        _, told = await ask(channel, b"x", bearer("a"))
        assert told["ratelimit-policy"] == '"detections";q=2;w=200'
        assert told["ratelimit"].startswith('"detections";r=1;')
        failure = await fails(channel, b"bad", bearer("a"))
        assert dict(failure.trailing_metadata())["ratelimit"].startswith('"detections";r=0;')
        failure = await fails(channel, b"x", bearer("a"))
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = dict(failure.trailing_metadata())
        assert told["polyolo-error"] == "rate-limited"
        assert 90 <= int(told["retry-after"]) <= 100
        assert len(behind["a"].calls) == 2
        made.publish(route("a", socket, images_per_month=1))
        await made.revision()
        await ask(channel, b"x", bearer("a"))
        failure = await fails(channel, b"x", bearer("a"))
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "used up" in failure.details()


async def test_a_runtime_that_restarts_is_found_again_at_once():
    """A dead channel costs an error while nobody listens, and nothing afterwards."""
    async with doors(hold_s=0.8) as (made, behind, channel):
        await ask(channel, b"x", bearer("a"))
        home = made.home / "restarting"
        home.mkdir()
        made.publish(route("a", home / "runtime.sock"), route("b", made.home / "b/runtime.sock"))
        await made.revision()
        failure = await fails(channel, b"x", bearer("a"))
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert str(made.home) not in failure.details()
        for missed in (True, False, True):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((behind["a"],))
            server.add_insecure_port(f"unix:{home}/grpc.sock")
            await server.start()
            assert (await ask(channel, b"x", bearer("a")))[0] == b"ax"
            await server.stop(0)
            if missed:
                await fails(channel, b"x", bearer("a"))


async def test_the_gateways_own_health_needs_no_credential():
    """What a load balancer asks; not serving before the first snapshot."""
    async with platform(ready=False) as made:
        server = await made.doors.grpc.open("127.0.0.1", made.port)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port + 1}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")

            async def status() -> int:
                return health_pb2.HealthCheckResponse.FromString(await check(b"", timeout=5)).status

            assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
            made.publish()
            await made.revision()
            assert await status() == health_pb2.HealthCheckResponse.SERVING
        await server.stop(0)


async def test_a_taken_port_is_a_sentence():
    """Another program on the port behind HTTP's: say so."""
    async with platform() as made:
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", made.port + 1)
        async with taken:
            with pytest.raises(OSError, match="is it taken"):
                await made.doors.grpc.open("127.0.0.1", made.port)
