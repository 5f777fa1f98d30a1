"""The control plane's composition root: from settings to a running API and reconciler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

import polyolo
from polyolo import web
from polyolo.control import db, home, internal, names, problems
from polyolo.control.admission import Admission
from polyolo.control.api import models, tenants
from polyolo.control.api.asking import SCHEMES
from polyolo.control.artifacts import ArtifactStore
from polyolo.control.bodylimit import BodyLimit
from polyolo.control.changes import Changes
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.plane import Plane
from polyolo.control.reconciler import Reconciler
from polyolo.control.service import standard
from polyolo.control.service.ledger import Ledger
from polyolo.control.settings import ControlSettings
from polyolo.drivers.process import ProcessDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control plane at work: its reconciler runs, its API waits to be served."""

    settings: ControlSettings
    operator_key: str
    app: ASGIApp
    plane: Plane

    def release(self) -> None:
        """Answer the gateways' long polls now, so that serving can end. Any thread."""
        self.plane.changes.close()


def build(plane: Plane, reconciler: Reconciler) -> ASGIApp:
    """Return the control API as an ASGI app."""
    app = FastAPI(
        title="polyolo",
        version=polyolo.__version__,
        description="Tenants, keys, models and usage of a polyolo platform.",
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.plane = plane
    problems.install(app)
    for routes in (tenants.routes, models.routes):
        app.include_router(
            routes, prefix="/api/v1", dependencies=SCHEMES, responses=problems.DESCRIBED
        )

    async def live() -> str:
        return "" if reconciler.alive() else "the reconciler has stopped"

    async def ready() -> str:
        await run_in_threadpool(plane.ledger.revision)  # raises when the database is gone
        return await live()

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    app.router.routes += internal.routes(plane)
    app.router.routes += web.probes(live=live, ready=ready, registry=registry)
    return web.Service(BodyLimit(app), access_log=True)


@asynccontextmanager
async def opened(settings: ControlSettings) -> AsyncIterator[Control]:
    """Bring a control plane up on its home, and take it down again, its runtimes first drained.

    Raises OSError when the home, the standard model or a command cannot be used, RuntimeError
    for a newer release's database, PolyoloError when the standard model is refused.
    """
    stack = ExitStack()
    try:
        control = await asyncio.to_thread(_open, settings, stack)
        yield control
        control.release()
    finally:
        await asyncio.to_thread(stack.close)


def _open(settings: ControlSettings, stack: ExitStack) -> Control:
    stack.enter_context(home.held(settings.home))
    operator_key = home.operator_key(settings.home)
    engine = db.open_engine(settings.database_url)
    stack.callback(engine.dispose)
    migrate(engine)
    ledger = Ledger(engine)
    changes = Changes(ledger.revision())
    ledger.listeners.append(changes.publish)
    store = ArtifactStore(settings.artifacts)
    admission = Admission(ledger, store, settings.inspect_command)
    admission.admit_file(
        settings.standard,
        lambda artifact: standard.choose(ledger, artifact, settings.standard_label),
    )
    admission.sweep()
    driver = ProcessDriver(
        settings.run,
        settings.runtime_command,
        environment=settings.runtime_environment,
        drain_s=settings.drain_s,
    )
    stack.callback(driver.close)  # after the reconciler, or it would start them again
    reconciler = Reconciler(
        ledger,
        driver,
        locate=lambda digest: str(store.path(digest).absolute()),
        discard=admission.discard,
        workers=settings.workers,
    )
    stack.callback(reconciler.stop)
    reconciler.start()
    plane = Plane(
        settings=settings,
        operator_digest=names.digest(operator_key),
        ledger=ledger,
        store=store,
        admission=admission,
        changes=changes,
    )
    return Control(
        settings=settings,
        operator_key=operator_key,
        app=build(plane, reconciler),
        plane=plane,
    )


async def run(settings: ControlSettings, *, stop: asyncio.Event | None = None) -> None:
    """Serve the control API on the home's socket until SIGTERM or `stop`, then drain all."""
    stop = stop or web.signalled()
    async with opened(settings) as control:

        async def release() -> None:
            await stop.wait()
            control.release()

        releasing = asyncio.create_task(release())
        await web.serve(control.app, web.bind(path=settings.socket), stop=stop)
        releasing.cancel()
