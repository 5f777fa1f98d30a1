"""Composes one tenant's runtime: the spec's models behind one batcher behind the REST surface."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import msgspec
from starlette.routing import Router

from polyolo import telemetry, web
from polyolo.serving import loading, memory, pipeline, rest
from polyolo.serving.batcher import Batcher, Capacity
from polyolo.serving.cpus import usable_cpus
from polyolo.serving.engines import onnxruntime
from polyolo.serving.image import configure_opencv
from polyolo.serving.repository import Repository
from polyolo.serving.settings import Settings
from polyolo.types import RuntimeSpec, VersionSpec

log = telemetry.logger("serving")


async def run(settings: Settings) -> None:
    """Serve one tenant's models until SIGTERM, then finish what is in flight and return.

    Raises OSError or ValueError with a sentence when it cannot start.
    """
    telemetry.configure_logging("serving")
    memory.configure_malloc()
    configure_opencv()
    spec = read_spec(settings.spec)
    metrics = telemetry.Metrics()

    def load(name: str, version: VersionSpec) -> loading.LoadedModel:
        data = loading.read_version(settings.spec.parent, version)
        model = loading.load(data, name, version, onnxruntime.open_engine)
        del data
        memory.give_back()
        depth = metrics.queue_depth.labels(spec.tenant, name)
        depth.set_function(lambda: batcher.waiting(lambda key: _named(key, name)))
        return model

    def work(jobs: Sequence[pipeline.Job]) -> list[pipeline.Answer | Exception]:
        outcomes = pipeline.answer(jobs)
        for outcome in outcomes:
            if isinstance(outcome, pipeline.Answer):
                seconds = outcome.timing.inference / 1e3
                name = jobs[0].model.ref.name
                metrics.inference_duration.labels(spec.tenant, name).observe(seconds)
                break  # one batch went through the engine once
        return outcomes

    batcher: Batcher[pipeline.Job, pipeline.Answer] = Batcher(
        work, Capacity(streams=usable_cpus(), stuck_after_s=settings.stuck_after_s)
    )
    repository = Repository(load, lambda name: metrics.model_swaps.labels(spec.tenant, name).inc())
    repository.apply(spec)
    runtime = rest.Runtime(
        tenant=spec.tenant, repository=repository, batcher=batcher, metrics=metrics
    )

    async def live() -> str:
        return batcher.stuck()

    async def ready() -> str:
        return repository.not_ready()

    probes = web.probes(live=live, ready=ready, registry=metrics.registry)
    router = Router([*rest.routes(runtime), *probes], redirect_slashes=False)
    listener = web.bind(host=settings.host, port=settings.port, path=settings.socket)
    try:
        await web.serve(web.Service(router, access_log=False), listener)
    finally:
        batcher.close()
        await repository.close()


def _named(key: Hashable, name: str) -> bool:
    return isinstance(key, loading.LoadedModel) and key.ref.name == name


def read_spec(path: Path) -> RuntimeSpec:
    """Read a runtime spec document. Raises OSError, or ValueError saying what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RuntimeSpec)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the spec document {path} cannot be used: {error}") from None
