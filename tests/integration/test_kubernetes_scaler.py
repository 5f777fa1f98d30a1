"""KEDA's side of the gateway: a real gRPC client asks what KEDA asks, and is told at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from polyolo import web
from polyolo.gateway import externalscaler_pb2 as messages
from polyolo.gateway.activity import Activity
from polyolo.gateway.scaler import METRIC, Peers, Scaler
from polyolo.types import Phase, TenantState
from tests.integration.gateway_parts import platform, route, until

# Hold gRPC's engine for the whole session; see test_gateway_grpc.
grpc.aio.init_grpc_aio()

_SERVICE = "/externalscaler.ExternalScaler/"


class Keda:
    """What KEDA's external scaler asks, by messages generated from the protocol."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.aio.insecure_channel(target)

    def _unary(self, name: str, answer: Any) -> Any:
        return self.channel.unary_unary(
            _SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    async def active(self, tenant: str) -> bool:
        answer = await self._unary("IsActive", messages.IsActiveResponse)(reference(tenant))
        return bool(answer.result)

    async def metric_spec(self, **metadata: str) -> Any:
        answer = await self._unary("GetMetricSpec", messages.GetMetricSpecResponse)(
            reference("t_a", **metadata)
        )
        return answer.metricSpecs

    async def metric(self, tenant: str) -> float:
        asked = messages.GetMetricsRequest(scaledObjectRef=reference(tenant), metricName=METRIC)
        answer = await self._unary("GetMetrics", messages.GetMetricsResponse)(asked)
        assert [one.metricName for one in answer.metricValues] == [METRIC]
        return float(answer.metricValues[0].metricValueFloat)

    def stream(self, tenant: str) -> Any:
        call = self.channel.unary_stream(
            _SERVICE + "StreamIsActive",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.IsActiveResponse.FromString,
        )
        return call(reference(tenant))


def reference(tenant: str, **metadata: str) -> Any:
    known = {"scalerAddress": "x:1", "tenant": tenant, **metadata}
    return messages.ScaledObjectRef(
        name="polyolo-runtime", namespace="polyolo-t", scalerMetadata=known
    )


def port() -> int:
    with web.bind(host="127.0.0.1") as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def listening(scaler: Scaler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    target = f"{host}:{port()}"
    server = await scaler.open(target)
    try:
        yield target
    finally:
        await server.stop(0)


@pytest.fixture
async def gateway():
    """A gateway, whose tenant a sleeps, and KEDA."""
    async with platform(scaler="127.0.0.1:0") as made:
        made.publish(route("a", None, Phase.ABSENT))
        await made.revision()
        async with listening(made.doors.scaler) as target:
            keda = Keda(target)
            yield made, keda
            await keda.channel.close()


async def answers(stream: Any) -> bool:
    return bool((await asyncio.wait_for(stream.read(), 5)).result)


async def test_the_first_held_request_is_pushed_within_50_ms(gateway):
    """No polling stands between the request and its pod; the median of twenty is told."""
    made, keda = gateway
    stream = keda.stream("t_a")
    assert await answers(stream) is False
    took = []
    for _ in range(20):
        started = time.perf_counter()
        held = asyncio.create_task(made.detect("a"))
        assert await answers(stream) is True
        took.append(time.perf_counter() - started)
        held.cancel()
        assert await answers(stream) is False
    assert sorted(took)[10] < 0.05


async def test_it_says_how_much_is_in_flight(gateway):
    """Requests that are held count; the metric, its name and its target are KEDA's."""
    made, keda = gateway
    assert await keda.active("t_a") is False
    assert await keda.metric("t_a") == 0
    held = [asyncio.create_task(made.detect("a")) for _ in range(3)]
    await made.in_flight("a", 3)
    assert await keda.active("t_a") is True
    assert await keda.metric("t_a") == 3
    spec = (await keda.metric_spec(target="2.5"))[0]
    assert (spec.metricName, spec.targetSizeFloat, spec.targetSize) == (METRIC, 2.5, 2)
    for one in held:
        one.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await until(lambda: not made.doors.scaler.active("t_a"))


async def test_control_keeps_awake_what_it_has_not_put_to_sleep(gateway):
    """A runtime that is ready is needed though nothing is in flight; asleep, it is not."""
    made, keda = gateway
    stream = keda.stream("t_a")
    assert await answers(stream) is False
    made.publish()
    assert await answers(stream) is True
    made.publish(route("a", None, Phase.ASLEEP))
    assert await answers(stream) is False


async def test_nobody_is_woken_who_may_not_run(gateway):
    """Suspended or unknown, a tenant is not active whatever comes in."""
    made, keda = gateway
    suspended = route("b", made.socket("b"))
    object.__setattr__(suspended, "state", TenantState.SUSPENDED)
    made.publish(suspended)
    await made.revision()
    assert await keda.active("t_b") is False
    assert await keda.active("nobody") is False
    assert await answers(keda.stream("nobody")) is False


async def test_what_makes_no_sense_is_told(gateway):
    """A trigger without a tenant, or with a target that is none, is an error KEDA shows."""
    _, keda = gateway
    for target in ("0", "-1", "x", "nan", "inf"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await keda.metric_spec(target=target)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for call in (keda.active(""), keda.metric(""), answers(keda.stream(""))):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_each_gateway_answers_for_all(gateway):
    """KEDA asks one of them; what the other holds counts, and wakes too."""
    made, _ = gateway
    held = [asyncio.create_task(made.detect("a")) for _ in range(2)]
    await made.in_flight("a", 2)
    async with listening(made.doors.scaler, "127.0.0.2") as target:
        peers, activity = Peers(target), Activity()
        other = Scaler(made.doors.directory, activity, peers)
        async with listening(other) as second:
            asking = Keda(second)
            with activity.of("t_a"):
                assert await asking.metric("t_a") == 3
                assert await asking.active("t_a") is True
            await asking.channel.close()
        await peers.close()
    silent = Peers("127.0.0.3:1")
    assert await silent.in_flight() == {}
    await silent.close()
    for one in held:
        one.cancel()
    await asyncio.gather(*held, return_exceptions=True)
