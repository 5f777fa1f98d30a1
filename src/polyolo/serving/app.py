"""Composes one tenant's runtime: the spec's models, each in a process, behind HTTP and gRPC."""

from __future__ import annotations

import asyncio
import os
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import Router

from polyolo import telemetry, web
from polyolo.serving import inference_rest, memory, process, rest
from polyolo.serving.batcher import Capacity
from polyolo.serving.cpus import usable_cpus
from polyolo.serving.fetch import located
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.repository import Repository
from polyolo.serving.runtime import Runtime
from polyolo.serving.settings import Settings
from polyolo.serving.wire import Opening
from polyolo.types import ModelRef, RuntimeSpec, VersionSpec

_DRAIN_S = 30.0  # what calls in flight are given, as web.serve gives requests


async def run(settings: Settings) -> None:
    """Serve one tenant's models until SIGTERM, then finish what is in flight and return.

    Raises OSError or ValueError with a sentence when it cannot start.
    """
    telemetry.configure_logging("serving")
    spec = read_spec(settings.spec)
    metrics = telemetry.Metrics()
    capacity = Capacity(streams=usable_cpus())

    async def load(name: str, version: VersionSpec) -> LoadedModel:
        here = settings.spec.parent.absolute()

        async def found(uri: str) -> str:
            return str(await located(uri, here, settings.models, settings.token))

        opening = Opening(
            ref=ModelRef(name=name, version=version.version),
            path=await found(version.uri),
            digest=version.digest,
            classes=version.classes,
            family=version.family,
            streams=capacity.streams,
            engine=version.engine,
            precision=version.precision,
            golden=tuple([await found(uri) for uri in version.golden]),
        )
        if old := repository.current(name):
            beside = memory.resident(old.pid)
            memory.refuse_unless_room(Path(opening.path), beside, memory.available())
        opened = await process.start(opening)
        depth = metrics.queue_depth.labels(spec.tenant, name)
        depth.set_function(lambda: repository.waiting(name))
        return LoadedModel(opening, version, opened, capacity, settings.stuck_after_s)

    def swapped(name: str) -> None:
        metrics.model_swaps.labels(spec.tenant, name).inc()

    repository = Repository(load, swapped)
    repository.apply(spec)
    runtime = Runtime(tenant=spec.tenant, repository=repository, metrics=metrics)

    async def live() -> str:
        return ""  # a stuck model is ended by its own deadline; what is left is this event loop

    async def ready() -> str:
        return repository.not_ready()

    probes = web.probes(live=live, ready=ready, registry=metrics.registry)
    routes = [*rest.routes(runtime, settings.token), *inference_rest.routes(runtime), *probes]
    app = web.Service(Router(routes, redirect_slashes=False), access_log=False)
    listener = web.bind(host=settings.host, port=settings.port, path=settings.socket)
    stop = web.signalled()
    try:
        # HTTP answers from here on, so who is told that the runtime is ready finds gRPC ready too.
        server = await _start_grpc(runtime, web.rpc_target(_endpoint(settings, listener)))
        await asyncio.gather(web.serve(app, listener, stop=stop), _drain(server, stop))
    finally:
        await repository.close()


def _endpoint(settings: Settings, listener: socket.socket) -> str:
    if settings.socket is not None:
        return f"unix:{settings.socket.absolute()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _start_grpc(runtime: Runtime, target: str) -> Any:
    # Models' processes are started by fork and exec; gRPC's own handlers of fork would wait for
    # its threads, for a child that never speaks gRPC.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # Imported in a thread, and now: the first model's process is being started meanwhile.
    module = await asyncio.to_thread(import_module, "polyolo.serving.grpc")
    return await module.start(runtime, target)


async def _drain(server: Any, stop: asyncio.Event) -> None:
    await stop.wait()
    await server.stop(_DRAIN_S)


def read_spec(path: Path) -> RuntimeSpec:
    """Read a runtime spec document. Raises OSError, or ValueError saying what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RuntimeSpec)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the spec document {path} cannot be used: {error}") from None
