"""The control plane's composition root: from settings to a running API and reconciler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

import polyolo
from polyolo import web
from polyolo.control import db, handout, home, internal, names, problems, rotation
from polyolo.control.admission import Admission
from polyolo.control.api import accounts, manifests, models, oauth, tenants
from polyolo.control.api import audit as log
from polyolo.control.api.asking import SCHEMES
from polyolo.control.artifacts import ArtifactStore
from polyolo.control.bodylimit import BodyLimit
from polyolo.control.calls import Audited, Recorder
from polyolo.control.changes import Changes
from polyolo.control.guesses import REGISTRATIONS, Guesses
from polyolo.control.leader import Leader, identity
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.passwords import Passwords
from polyolo.control.places import opened_driver
from polyolo.control.plane import Plane
from polyolo.control.reconciler import Reconciler
from polyolo.control.secrets import SealedError
from polyolo.control.service import audit, standard
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.control.throttle import Throttle
from polyolo.control.witness import Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control plane at work: its reconciler runs, its API waits to be served."""

    settings: ControlSettings
    operator_key: str
    app: ASGIApp
    files: ASGIApp
    """What runtimes of other machines fetch their models from."""
    plane: Plane
    leader: Leader

    def release(self) -> None:
        """Answer the gateways' long polls now, so that serving can end. Any thread."""
        self.plane.changes.close()


def build(plane: Plane, leader: Leader, recorder: Recorder) -> ASGIApp:
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
    for routes in (
        accounts.routes,
        tenants.routes,
        manifests.routes,
        oauth.routes,
        oauth.platform,
        models.routes,
        log.routes,
    ):
        app.include_router(
            routes, prefix="/api/v1", dependencies=SCHEMES, responses=problems.DESCRIBED
        )
    app.include_router(oauth.public)

    async def live() -> str:
        return "" if leader.alive() else "the reconciler has stopped"

    async def ready() -> str:
        await run_in_threadpool(plane.ledger.revision)  # raises when the database is gone
        return await live()

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    app.router.routes += internal.routes(plane)
    app.router.routes += web.probes(live=live, ready=ready, registry=registry)
    audited = Audited(BodyLimit(app), recorder, plane.ledger)
    return web.Service(audited, access_log=True)


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
    settings.run.mkdir(mode=0o700, exist_ok=True)
    engine = db.open_engine(settings.database_url)
    stack.callback(engine.dispose)
    migrate(engine)
    vault = Vault(rotation.settled(settings.home, engine))
    try:
        ledger = Ledger(engine, audit.opened(engine, vault))
    except SealedError as error:
        raise OSError(str(error)) from None
    stack.callback(Keeper(ledger, settings.home, settings.audit_days).close)
    recorder = Recorder(ledger)
    stack.callback(recorder.close)
    changes = Changes(ledger.revision())
    ledger.listeners.append(changes.publish)
    store = ArtifactStore(settings.artifacts)
    admission = Admission(ledger, store, settings.inspect_command)
    admission.admit_file(
        settings.standard,
        lambda artifact: standard.choose(ledger, artifact, settings.standard_label),
    )
    admission.sweep()

    def begin(guarded: Ledger, leads: Callable[[], bool]) -> tuple[Reconciler, Callable[[], None]]:
        driver, close = opened_driver(settings, guarded, vault)
        reconciler = Reconciler(
            guarded,
            driver,
            locate=lambda digest: str(store.path(digest).absolute()),
            discard=admission.discard,
            leads=leads,
            workers=settings.workers,
        )
        try:
            reconciler.start()
        except BaseException:
            reconciler.stop()
            close()
            raise
        return reconciler, close

    leader = Leader(ledger, changes, identity(settings.home / "lock"), begin)
    stack.callback(leader.stop)
    leader.start()
    plane = Plane(
        settings=settings,
        operator_digest=names.digest(operator_key),
        ledger=ledger,
        store=store,
        admission=admission,
        changes=changes,
        vault=vault,
        token_signer=Signer(ledger, vault, settings.public_url),
        passwords=Passwords(),
        guesses=Guesses(ledger.clock),
        registrations=Throttle(REGISTRATIONS, ledger.clock),
    )
    return Control(
        settings=settings,
        operator_key=operator_key,
        app=build(plane, leader, recorder),
        files=handout.app(ledger, vault, store),
        plane=plane,
        leader=leader,
    )


async def serve(control: Control, stop: asyncio.Event) -> None:
    """Serve the control API on the home's socket, and on what else the settings name."""
    settings = control.settings
    listeners = [(control.app, web.bind(path=settings.socket))]
    for app, address in ((control.app, settings.listen), (control.files, settings.hand_out)):
        if address is not None:
            listeners.append((app, web.bind(host=address[0], port=address[1])))
    await asyncio.gather(*(web.serve(app, listener, stop=stop) for app, listener in listeners))


async def run(settings: ControlSettings, *, stop: asyncio.Event | None = None) -> None:
    """Serve the control API until SIGTERM or `stop`, then drain all."""
    stop = stop or web.signalled()
    async with opened(settings) as control:

        async def release() -> None:
            await stop.wait()
            control.release()

        releasing = asyncio.create_task(release())
        await serve(control, stop)
        releasing.cancel()
