"""Composes one tenant's runtime: the spec's models, each in a process, behind HTTP and gRPC."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from starlette.routing import Router

from polyolo import telemetry, web
from polyolo.serving import inference_rest, memory, process, rest
from polyolo.serving.batcher import Capacity
from polyolo.serving.cpus import usable_cpus
from polyolo.serving.fetch import Files
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.overrides import Overrides
from polyolo.serving.repository import Repository
from polyolo.serving.runtime import Runtime
from polyolo.serving.settings import Settings
from polyolo.serving.spec import read_spec
from polyolo.serving.wire import Opening
from polyolo.types import ModelRef, RuntimeSpec, VersionSpec

_DRAIN_S = 30.0  # what calls in flight are given, as web.serve gives requests
_SHADOW = Capacity(streams=1)
_BACKGROUND_PATIENCE = 30
"""How much longer than others a model may take that gets only the time that is left over."""
_BACKGROUND_OPENS_S = 600.0


async def run(settings: Settings) -> None:
    """Serve one tenant's models until SIGTERM, then finish what is in flight and return.

    The models' uris are relative to the working directory.
    Raises OSError or ValueError with a sentence when it cannot start.
    """
    telemetry.configure_logging("serving")
    spec = None if settings.ahead else read_spec(settings.spec)
    key = settings.key
    overrides = Overrides(settings.settings, os.environ)
    files = Files(settings.models, settings.token, settings.storage)
    metrics = telemetry.Metrics()
    capacity = Capacity(streams=usable_cpus())
    # What every model's process imports is imported before anybody knows whose model it will be.
    ahead = None if spec else await process.launch(capacity.streams)

    async def load(name: str, version: VersionSpec, *, background: bool = False) -> LoadedModel:
        nonlocal ahead
        opening = Opening(
            ref=ModelRef(name=name, version=version.version),
            path=str(files.path(version.uri)),
            digest=version.digest,
            key=key,
            classes=version.classes,
            family=version.family,
            streams=capacity.streams,
            engine=version.engine,
            precision=version.precision,
            golden=tuple(str(files.path(uri)) for uri in version.golden),
            input_size=version.input_size,
            gently=repository.serves,
        )
        if background:
            opening = replace(opening, streams=1)
            opened = await process.start(opening, background=True, within_s=_BACKGROUND_OPENS_S)
            patience_s = _BACKGROUND_PATIENCE * settings.stuck_after_s
            return LoadedModel(opening, version, opened, _SHADOW, patience_s)
        first, ahead = ahead, None
        opened = await process.start(opening, ahead=first)
        depth = metrics.queue_depth.labels(repository.tenant, name)
        depth.set_function(lambda: repository.waiting(name))
        return LoadedModel(opening, version, opened, capacity, settings.stuck_after_s)

    def weigh(version: VersionSpec, known: int, limit: int, pids: Sequence[int]) -> memory.Room:
        return memory.room(files.path(version.uri), known, limit, pids)

    def swapped(name: str) -> None:
        metrics.model_swaps.labels(repository.tenant, name).inc()

    def unlock(given: str) -> None:
        nonlocal key
        key = given

    def taken(spec: RuntimeSpec) -> RuntimeSpec:
        files.keep(spec)
        return overrides.apply(spec)

    repository = Repository(load, swapped, weigh, taken, files.bring)
    if spec is not None:
        repository.apply(spec)
    runtime = Runtime(repository=repository, metrics=metrics, unlock=unlock)

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
        following = asyncio.create_task(overrides.follow(repository.apply_again))
        await asyncio.gather(web.serve(app, listener, stop=stop), _drain(server, stop))
        following.cancel()
    finally:
        await repository.close()
        if ahead is not None:
            await ahead.close()


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
