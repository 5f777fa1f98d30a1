"""Composes one tenant's runtime: the spec's models, each in a process, behind the REST surface."""

from __future__ import annotations

from pathlib import Path

import msgspec
from starlette.routing import Router

from polyolo import telemetry, web
from polyolo.serving import process, rest
from polyolo.serving.batcher import Capacity
from polyolo.serving.cpus import usable_cpus
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.repository import Repository
from polyolo.serving.runtime import Runtime
from polyolo.serving.settings import Settings
from polyolo.serving.wire import Opening
from polyolo.types import ModelRef, RuntimeSpec, VersionSpec


async def run(settings: Settings) -> None:
    """Serve one tenant's models until SIGTERM, then finish what is in flight and return.

    Raises OSError or ValueError with a sentence when it cannot start.
    """
    telemetry.configure_logging("serving")
    spec = read_spec(settings.spec)
    metrics = telemetry.Metrics()
    capacity = Capacity(streams=usable_cpus())

    async def load(name: str, version: VersionSpec) -> LoadedModel:
        opening = Opening(
            ref=ModelRef(name=name, version=version.version),
            path=str(settings.spec.parent.absolute() / version.uri),
            digest=version.digest,
            classes=version.classes,
            family=version.family,
            streams=capacity.streams,
        )
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
    router = Router([*rest.routes(runtime), *probes], redirect_slashes=False)
    listener = web.bind(host=settings.host, port=settings.port, path=settings.socket)
    try:
        await web.serve(web.Service(router, access_log=False), listener)
    finally:
        await repository.close()


def read_spec(path: Path) -> RuntimeSpec:
    """Read a runtime spec document. Raises OSError, or ValueError saying what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RuntimeSpec)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the spec document {path} cannot be used: {error}") from None
