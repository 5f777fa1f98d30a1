"""The control plane's composition root: from settings to a running API and reconciler."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import cache, partial

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.routing import Router
from starlette.types import ASGIApp

import polyolo
from polyolo import telemetry, web
from polyolo.control import (
    conversion,
    db,
    handout,
    home,
    internal,
    names,
    places,
    problems,
    rotation,
)
from polyolo.control.admission import Admission, admit_standard
from polyolo.control.adoption import adopt
from polyolo.control.api import (
    accounts,
    limits,
    manifests,
    models,
    oauth,
    privacy,
    releases,
    signin_oidc,
    storage,
    system,
    tenants,
    trials,
    uploads,
    warming,
)
from polyolo.control.api import audit as log
from polyolo.control.api.asking import SCHEMES
from polyolo.control.arrivals import Arrivals
from polyolo.control.artifacts import Artifacts
from polyolo.control.bodylimit import BodyLimit
from polyolo.control.calls import Audited, Recorder
from polyolo.control.changes import Changes
from polyolo.control.external import External
from polyolo.control.gate import Gate
from polyolo.control.guesses import REGISTRATIONS, Guesses
from polyolo.control.leader import Leader, Worker, identity
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.objects import DirectoryStore, ObjectStore
from polyolo.control.plane import Plane
from polyolo.control.reconciler import Reconciler
from polyolo.control.secrets import SealedError
from polyolo.control.service import artifacts, audit, erasures, standard
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.storages import Storages
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.control.throttle import Throttle
from polyolo.control.trials import Trials
from polyolo.control.witness import Keeper
from polyolo.drivers.children import Fork, Handle
from polyolo.sandbox.layers import Isolation
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local
from polyolo.sandbox.report import lacking

_ARRIVALS_S = 60.0
"""For files to come in whole before another program goes on; one that takes longer is resumed."""
_LOOK_S = 0.1


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

    async def leave(self) -> None:
        """End the work, so that the context can be left with the runtimes running on.

        First waits for the files that come in, a minute at most, and for the jobs in hand; until
        the end of that everything goes on.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVALS_S):
                while self.plane.arrivals.any():  # noqa: ASYNC110  # nobody else asks
                    await asyncio.sleep(_LOOK_S)
        await asyncio.to_thread(self.leader.leave)

    def release(self) -> None:
        """Answer the gateways' long polls now, so that serving can end. Any thread."""
        self.plane.changes.close()


@cache
def _described() -> FastAPI:
    """Return the API's routes, with nothing behind them: describing them takes a while."""
    app = FastAPI(
        title="polyolo",
        version=polyolo.__version__,
        description="Tenants, keys, models and usage of a polyolo platform.",
        redirect_slashes=False,
        redoc_url=None,
    )
    problems.install(app)
    for routes in (
        accounts.routes,
        signin_oidc.routes,
        signin_oidc.own,
        tenants.routes,
        privacy.routes,
        limits.routes,
        warming.routes,
        manifests.routes,
        oauth.routes,
        oauth.platform,
        models.routes,
        uploads.routes,
        storage.routes,
        trials.routes,
        releases.routes,
        log.routes,
        system.routes,
    ):
        app.include_router(
            routes, prefix="/api/v1", dependencies=SCHEMES, responses=problems.DESCRIBED
        )
    app.include_router(oauth.public)
    return app


def build(plane: Plane, leader: Leader, recorder: Recorder) -> ASGIApp:
    """Return the control API as an ASGI app."""
    app = copy(_described())
    app.state = State({"plane": plane})

    async def live() -> str:
        return "" if leader.alive() else "the reconciler has stopped"

    async def ready() -> str:
        await run_in_threadpool(plane.ledger.revision)  # raises when the database is gone
        return await live()

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    probes = web.probes(live=live, ready=ready, registry=registry)
    routes = Router([*internal.routes(plane), *probes], default=app, redirect_slashes=False)
    audited = Audited(BodyLimit(routes), recorder, plane.ledger)
    return web.Service(audited, access_log=True)


@asynccontextmanager
async def opened(settings: ControlSettings) -> AsyncIterator[Control]:
    """Bring a control plane up on its home, and take it down again, its runtimes first drained.

    Raises OSError when the home, the standard model or a command cannot be used, RuntimeError
    for a newer release's database, PolyoloError when the standard model is refused.
    """
    stack = ExitStack()
    loop = asyncio.get_running_loop()

    def fork(begin: Callable[[], Handle]) -> Handle:
        """Start a process on the loop's thread, which goes on when the program is another one."""

        async def here() -> Handle:
            return begin()

        return asyncio.run_coroutine_threadsafe(here(), loop).result()

    try:
        control = await asyncio.to_thread(_open, settings, stack, fork)
        yield control
        control.release()
    finally:
        await asyncio.to_thread(stack.close)


def rehearse(settings: ControlSettings) -> None:
    """Do what a start does, beside the platform that runs and without a trace.

    Raises what `opened` would.
    """
    isolation = _isolation(settings)
    conversion.here(settings.converter, isolation)
    home.operator_key(settings.home)
    _objects(settings)
    _described()
    if isolation.groups is not None:
        isolation.groups.close()
    engine = db.open_engine(settings.database_url)
    try:
        migrate(engine, keep=False)
    finally:
        engine.dispose()


def _open(settings: ControlSettings, stack: ExitStack, fork: Fork) -> Control:
    stack.enter_context(home.held(settings.home))
    operator_key = home.operator_key(settings.home)
    settings.run.mkdir(mode=0o700, exist_ok=True)
    isolation = _isolation(settings)
    if groups := isolation.groups:
        stack.callback(groups.close)
        groups.sweep()
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
    storages = Storages(ledger, vault)
    store = Artifacts(_objects(settings), partial(artifacts.key_of, ledger, vault), storages.file)
    programs = places.programs(settings, isolation)
    stack.callback(programs.close)
    gate = Gate(ledger, store, vault, programs.compare)
    adopt(ledger, store, settings.artifacts)
    admit_standard(
        ledger,
        store,
        # The operator's own: control starts whether or not the cluster has room.
        Local(command=settings.inspect_command, isolation=isolation),
        settings.standard,
        lambda artifact: standard.choose(ledger, artifact, settings.standard_label),
    )

    def begin(
        guarded: Ledger, leads: Callable[[], bool]
    ) -> tuple[Sequence[Worker], Callable[[], None]]:
        place = places.opened(settings, guarded, vault, store, isolation, fork)
        admission = Admission(
            guarded,
            store,
            storages,
            programs.inspect,
            programs.converter,
            settings.plans,
            leads=leads,
        )
        tried = Trials(guarded, Gate(guarded, store, vault, programs.compare), leads=leads)
        reconciler = Reconciler(
            guarded,
            place.driver,
            locate=store.uri,
            mounted=storages.mounted,
            discard=admission.forget,
            erase=partial(
                erasures.advance,
                guarded,
                vault,
                platform=settings.public_url.rstrip("/"),
                audit_days=settings.audit_days,
                discard=admission.forget,
            ),
            plans=settings.plans,
            leads=leads,
            tell=tried.tell,
            told=changes.everywhere,
            workers=settings.workers,
            starts=place.starts,
            elastic=place.elastic,
        )
        workers: tuple[Worker, ...] = (reconciler, admission.workers, tried.workers)
        try:
            for worker in workers:
                worker.start()
        except BaseException:
            for worker in workers:
                worker.stop()
            place.close()
            raise
        return workers, place.close

    leader = Leader(ledger, changes, identity(settings.home / "lock"), begin)
    stack.callback(leader.stop)
    stack.callback(programs.close)  # first: who stops waits for what is in hand
    leader.start()
    plane = Plane(
        settings=settings,
        operator_digest=names.digest(operator_key),
        ledger=ledger,
        store=store,
        storages=storages,
        arrivals=Arrivals(),
        gate=gate,
        changes=changes,
        leader=leader,
        isolation=isolation,
        vault=vault,
        token_signer=Signer(ledger, vault, settings.public_url),
        passwords=settings.passwords,
        guesses=Guesses(ledger=ledger, vault=vault),
        registrations=Throttle(REGISTRATIONS, ledger.clock),
        external=_external(settings, ledger, vault),
    )
    return Control(
        settings=settings,
        operator_key=operator_key,
        app=build(plane, leader, recorder),
        files=handout.app(ledger, vault, store),
        plane=plane,
        leader=leader,
    )


def _external(settings: ControlSettings, ledger: Ledger, vault: Vault) -> External | None:
    if settings.provider is None:
        return None
    with ledger.changing() as transaction:
        vault.prepare(transaction.connection)
        key = vault.fingerprint(transaction.connection, "key", "cookies.sign-in")
    return External.of(
        settings.provider, settings.public_url, bytes.fromhex(key), lambda: ledger.clock()
    )


def _isolation(settings: ControlSettings) -> Isolation:
    """Return what confines processes here. Raises OSError when that has to be more."""
    isolation = probe()
    if missing := lacking(isolation):
        said = "; ".join(missing)
        if settings.strict_isolation:
            raise OSError(
                f"this host does not give all of the isolation that strict asks for: {said}. "
                "Mend that, or start without --isolation strict"
            )
        telemetry.logger("isolation").warning("tenants are not fully isolated", missing=said)
    return isolation


def _objects(settings: ControlSettings) -> ObjectStore:
    if settings.store.startswith("s3://"):
        from polyolo.control.bucket import Bucket

        return Bucket(settings.store)
    return DirectoryStore(settings.artifacts)


async def serve(
    control: Control,
    stop: asyncio.Event,
    *,
    inner: socket.socket | None = None,
    retire: asyncio.Event | None = None,
) -> None:
    """Serve the control API on the home's socket, and on what else the settings name.

    inner: that socket, where it listens already. retire: see `web.serve`.
    """
    settings = control.settings
    listeners = [(control.app, inner or web.bind(path=settings.socket))]
    for app, address in ((control.app, settings.listen), (control.files, settings.hand_out)):
        if address is not None:
            listeners.append((app, web.bind(host=address[0], port=address[1])))
    await asyncio.gather(
        *(web.serve(app, listener, stop=stop, retire=retire) for app, listener in listeners)
    )


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
