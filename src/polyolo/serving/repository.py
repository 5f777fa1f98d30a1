"""Holds the models of one tenant: brings what is loaded in line with the spec, while serving.

Everything here runs on the event loop. Loading a version of a name that is loaded is the hot swap:
the new one is opened beside the old and takes its place when it has answered a test picture; the
old one closes with its last request. A load that fails changes nothing but the status. A version
that keeps crashing is taken out, and the one before it serves again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from polyolo import telemetry
from polyolo.errors import (
    ConflictError,
    NotFoundError,
    NotReadyError,
)
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.memory import Room
from polyolo.serving.rollouts import OnTrial, Trials
from polyolo.serving.shelf import Failure, Fetch, Key, Loader, Shelf, Weigh, at_hand
from polyolo.serving.spec import check, find, loads_ahead
from polyolo.serving.spec import current as current_of
from polyolo.types import (
    DetectionSettings,
    ModelSpec,
    ModelStatus,
    Phase,
    RuntimeSpec,
    RuntimeStatus,
    VersionSpec,
)

_MOST_ON_DEMAND = 4
"""Versions kept loaded that are nobody's current one; the least recently used goes first."""

log = telemetry.logger("repository")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A loaded model that stays open until `release`, with the settings to use it by."""

    model: LoadedModel
    settings: DetectionSettings
    trial: OnTrial | None = None
    """The rollout of this model, where the request named no version."""
    chosen: bool = False
    """Whether the version on trial is to see the request: `model` is it, unless it is a shadow."""

    @property
    def canary(self) -> bool:
        """Whether the version on trial is the one that answers."""
        return self.trial is not None and self.model is self.trial.loaded

    def release(self) -> None:
        """Let go of the model, once."""
        self.model.release()


class Repository:
    """The models of one runtime, as its spec wants them."""

    def __init__(
        self,
        load: Loader,
        on_swap: Callable[[str], None],
        weigh: Weigh = lambda *_: Room(),
        override: Callable[[RuntimeSpec], RuntimeSpec] = lambda spec: spec,
        fetch: Fetch = at_hand,
    ) -> None:
        """Hold nothing yet. override: has a say in every spec that is to be in force."""
        self._shelf = Shelf(load, weigh, self, fetch)
        self._on_swap = on_swap
        self._override = override
        self._asked: RuntimeSpec | None = None  # before it was overridden
        self._spec: RuntimeSpec | None = None
        self._models: dict[str, ModelSpec] = {}
        self._observed = 0
        self._current: dict[str, LoadedModel] = {}
        self._unloaded: set[Key] = set()  # current versions that wait for a request, and memory
        self._trials = Trials(self._shelf)
        self._changed = asyncio.Event()
        self._news = asyncio.Event()  # another one after each change of what is in force
        self._converging = asyncio.create_task(self._converge())

    def apply(self, spec: RuntimeSpec) -> None:
        """Make `spec` the desired state and return at once; loading goes on behind.

        A spec older than the one in hand is ignored, the same one again retries what failed.
        Raises InvalidValueError for one that contradicts itself, ConflictError for another
        tenant's.
        """
        check(spec)
        if self._spec is not None:
            if spec.tenant != self._spec.tenant:
                raise ConflictError("this runtime belongs to another tenant")
            if spec.generation < self._spec.generation:
                return
        self._asked, spec = spec, self._override(spec)
        self._spec = spec
        before, self._models = self._models, {model.name: model for model in spec.models}
        # What kept crashing stays out until another version is made current.
        self._shelf.failures = {
            key: failure
            for key, failure in self._shelf.failures.items()
            if failure.crashes
            and current_of(before, key[0]) == key == current_of(self._models, key[0])
        }
        self._shelf.limit_bytes = spec.resources.memory_bytes
        self._unloaded.clear()
        self._trials.end_unwanted(self._models)
        self._changed.set()

    @property
    def tenant(self) -> str:
        """Return whose models these are; empty before the first spec."""
        return self._spec.tenant if self._spec is not None else ""

    async def settled(self, generation: int, seconds: float) -> None:
        """Wait until a spec is in force, or the first one's default model; or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._observed < generation and (self._observed or self.not_ready()):
                    await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def apply_again(self) -> None:
        """Have the spec in hand overridden anew: there is something else to say to it."""
        if self._asked is not None:
            self.apply(self._asked)

    async def acquire(
        self, name: str | None = None, version: int | None = None, request_id: str = ""
    ) -> Lease:
        """Return a lease of a model, loading it first where it is not loaded yet.

        name: None for the default model. version: None for the current one. request_id: decides
        whether a version on trial takes its place; empty: none does. Raises NotFoundError, and
        NotReadyError with the reason when it cannot be loaded.
        """
        if self._spec is None:
            raise NotReadyError("the runtime has no spec yet")
        name = self._spec.default_model if name is None else name
        model = self.model(name)
        trial = self._trials.get(name) if version is None and request_id else None
        chosen = trial is not None and trial.takes(request_id)
        if trial is not None and chosen and (canary := trial.canary()) is not None:
            return Lease(model=canary, settings=model.settings, trial=trial, chosen=True)
        if version is None:
            # The one in force, which is the older one while the wanted one loads or has failed.
            loaded = self._current.get(name)
            key = self._wanted(model)
        else:
            key = (name, find(model, version))
            loaded = self._shelf.get(key) or self._same_bytes(key)
        if loaded is None:
            loaded = await self._shelf.load(key)
        if not loaded.lease():  # retired while this request waited for it
            return await self.acquire(name, version)
        self._shelf.used(loaded)
        return Lease(model=loaded, settings=model.settings, trial=trial, chosen=chosen)

    def model(self, name: str) -> ModelSpec:
        """Return what the spec says of a model. Raises NotFoundError."""
        model = self._models.get(name)
        if model is None:
            raise NotFoundError(f"there is no model {name[:80]!r}")
        return model

    def why_not(self, name: str, version: int | None = None) -> str:
        """Say why a model would not answer a request now; empty when it would.

        A version that loads on demand would. Raises NotFoundError.
        """
        model = self.model(name)
        loaded = self._current.get(name) if version is None else None
        if loaded is not None:
            return loaded.down
        wanted = self._wanted(model)[1] if version is None else find(model, version)
        status = self._status(name, wanted)
        return "" if status.state in ("ready", "idle") else status.reason or "it is loading"

    def not_ready(self) -> str:
        """Say why the default model cannot answer yet; empty when it can."""
        if self._spec is None:
            return "the runtime has no spec yet"
        model = self._models[self._spec.default_model]
        if model.name in self._current:
            return ""
        failed = self._shelf.failures.get((model.name, find(model, model.current)))
        if failed is not None:
            return f"the default model {model.name}:{model.current} failed to load: {failed.reason}"
        return f"the default model {model.name}:{model.current} is loading"

    def current(self, name: str) -> LoadedModel | None:
        """Return the version of a model that is in force, None before the first."""
        return self._current.get(name)

    @property
    def serves(self) -> bool:
        """Whether any model is in force."""
        return bool(self._current)

    def waiting(self, name: str) -> int:
        """Return how many requests wait for a model of this name, all its versions together."""
        return sum(one.queue.waiting for key, one in self._shelf.items() if key[0] == name)

    def status(self) -> RuntimeStatus:
        """Return what is observed now, one entry for each version that the spec names."""
        reason = self.not_ready()
        return RuntimeStatus(
            tenant=self.tenant,
            phase=Phase.STARTING if reason else Phase.READY,
            observed_generation=self._observed,
            models=tuple(
                self._status(model.name, version)
                for model in self._models.values()
                for version in model.versions
            ),
            reason=reason,
        )

    async def close(self) -> None:
        """Stop loading and close every model; no request holds one any more."""
        self._converging.cancel()
        await asyncio.gather(self._converging, return_exceptions=True)
        await self._shelf.close()

    def opened(self, key: Key, loaded: LoadedModel) -> None:
        """Have a version that was just loaded answer those who ask for it (see Owner)."""
        loaded.on_down = self._went_down
        self._unloaded.discard(key)
        model = self._models.get(key[0])
        if key[0] not in self._current and model is not None and self._wanted(model) == key:
            self._current[key[0]] = loaded
            self._tell()
        self._retire_unwanted()

    def needs(self, loaded: LoadedModel, beside: str) -> bool:
        """Say whether a version must stay (see Owner): the default model's does, and what is on
        trial or to be replaced."""
        name = loaded.ref.name
        if self._trials.holds(loaded):
            return True
        default = self._spec.default_model if self._spec is not None else ""
        return self._current.get(name) is loaded and name in (default, beside)

    def unloaded(self, loaded: LoadedModel) -> None:
        """Have a version wait for a request (see Owner)."""
        if self._current.get(loaded.ref.name) is loaded:
            del self._current[loaded.ref.name]
            self._unloaded.add((loaded.ref.name, loaded.version))

    def _status(self, name: str, version: VersionSpec) -> ModelStatus:
        key = (name, version)
        trial = self._trials.get(name)
        if trial is not None and trial.version != version:
            trial = None
        out, rollout = (trial.out, trial.status()) if trial is not None else ("", None)
        loaded = self._shelf.get(key) or (trial.loaded if trial is not None else None)
        if loaded is not None:
            return ModelStatus(
                name=name,
                version=version.version,
                state="failed" if loaded.down or out else "ready",
                reason=loaded.down or out,
                family=loaded.opened.family,
                input=loaded.opened.input,
                engine=loaded.opened.engine,
                device=loaded.opened.device,
                precision=loaded.opened.precision,
                speed=loaded.opened.speed,
                quality=loaded.opened.quality,
                crashes=loaded.crashes,
                memory_bytes=loaded.weight,
                rollout=rollout,
            )
        failed = Failure(out) if out else self._shelf.failures.get(key, Failure(""))
        assert self._spec is not None  # it names the version
        due = self._models[name].current == version.version and loads_ahead(self._spec, name)
        due = due and key not in self._unloaded
        loading = due or self._shelf.is_loading(key) or trial is not None
        return ModelStatus(
            name=name,
            version=version.version,
            state="failed" if failed.reason else "loading" if loading else "idle",
            reason=failed.reason,
            crashes=failed.crashes,
            rollout=rollout,
        )

    async def _converge(self) -> None:
        """Load what the newest spec wants, for ever; a newer one takes over between two loads."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            spec = self._spec
            assert spec is not None  # set before the event
            self._retire_unwanted()
            ahead = [model for model in spec.models if loads_ahead(spec, model.name)]
            for model in sorted(ahead, key=lambda one: one.name != spec.default_model):
                await self._bring(spec, model)
                if self._spec is spec:
                    await self._trials.begin(model)
                if self._spec is not spec:
                    break
            else:
                self._observed = spec.generation
                self._tell()
                log.info("spec in force", generation=spec.generation)
            self._retire_unwanted()

    async def _bring(self, spec: RuntimeSpec, model: ModelSpec) -> None:
        """Have a model's current version in force, or its fallback if that cannot be."""
        for key in (self._wanted(model), None):
            key = key or self._wanted(model)
            first = model.name != spec.default_model and model.name not in self._current
            try:
                if first and self._shelf.get(key) is None:
                    await self._shelf.fetch(key[1])
                    if self._shelf.room(key).short:
                        self._unloaded.add(key)  # nobody has asked for it, and others were faster
                        return
                loaded = self._shelf.get(key) or await self._shelf.load(key)
            except NotReadyError as error:  # the status says why
                self._shelf.failures.setdefault(key, Failure(error.detail))
            else:
                if self._spec is spec:
                    self._put_in_force(model.name, loaded)
                return
            if self._spec is not spec or model.name in self._current:
                return

    def _wanted(self, model: ModelSpec) -> Key:
        """Return the version that is to answer: the current one, or its fallback if it cannot."""
        key = (model.name, find(model, model.current))
        if key in self._shelf.failures and model.fallback:
            behind = (model.name, find(model, model.fallback))
            return key if behind in self._shelf.failures else behind
        return key

    def _same_bytes(self, key: Key) -> LoadedModel | None:
        """Return the version in force if it is this one, opened in another way until now."""
        loaded = self._current.get(key[0])
        if loaded is None or loaded.version.version != key[1].version:
            return None
        return loaded if loaded.version.digest == key[1].digest else None

    def _went_down(self, loaded: LoadedModel) -> None:
        """Take a version out that keeps crashing, where there is one to serve in its place."""
        name = loaded.ref.name
        model = self._models.get(name)
        if model is None or self._current.get(name) is not loaded:
            return
        key = (name, loaded.version)
        self._shelf.failures[key] = Failure(loaded.down, loaded.crashes)
        if self._wanted(model) == key:  # it is tried again when its pause is over
            del self._shelf.failures[key]
            return
        del self._current[name]
        self._shelf.drop(loaded)
        self._changed.set()

    def _put_in_force(self, name: str, loaded: LoadedModel) -> None:
        old = self._current.get(name)
        if old is loaded:
            return
        self._current[name] = loaded
        if old is not None:
            self._on_swap(name)
            self._shelf.drop(old)

    def _retire_unwanted(self) -> None:
        """Drop what the spec no longer names, and what was loaded on demand beyond the limit."""
        for name in [name for name in self._current if name not in self._models]:
            del self._current[name]
        serving = {id(loaded) for loaded in self._current.values()}
        wanted = {(model.name, one) for model in self._models.values() for one in model.versions}
        waiting = {self._wanted(model) for model in self._models.values()}
        waiting |= self._trials.keys()
        spare = [
            (key, loaded)
            for key, loaded in self._shelf.items()
            if id(loaded) not in serving and key not in waiting
        ]
        kept = [key for key, _ in spare if key in wanted][-_MOST_ON_DEMAND:]
        for key, loaded in spare:
            if key not in kept:
                self._shelf.drop(loaded)
