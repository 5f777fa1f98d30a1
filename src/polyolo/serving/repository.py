"""Holds the models of one tenant: brings what is loaded in line with the spec, while serving.

Everything here runs on the event loop; loading itself happens in the models' own processes.
Loading a version of a name that is loaded is the hot swap: the new one is opened beside the old
and takes its place when it has answered a test picture; the old one closes with its last
request. A load that fails changes nothing but the status.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from polyolo import telemetry
from polyolo.errors import (
    ConflictError,
    InvalidValueError,
    NotFoundError,
    NotReadyError,
    PolyoloError,
)
from polyolo.serving.loaded import LoadedModel
from polyolo.types import (
    STANDARD,
    DetectionSettings,
    ModelSpec,
    ModelStatus,
    Phase,
    RuntimeSpec,
    RuntimeStatus,
    VersionSpec,
)

Loader = Callable[[str, VersionSpec], Awaitable[LoadedModel]]
"""Loads a model's version, named by model. Raises PolyoloError or OSError."""

_Key = tuple[str, VersionSpec]

_MOST_ON_DEMAND = 4
"""Versions kept loaded that are nobody's current one; the least recently used goes first."""

log = telemetry.logger("repository")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A loaded model that stays open until `release`, with the settings to use it by."""

    model: LoadedModel
    settings: DetectionSettings

    def release(self) -> None:
        """Let go of the model, once."""
        self.model.release()


class Repository:
    """The models of one runtime, as its spec wants them."""

    def __init__(self, load: Loader, on_swap: Callable[[str], None]) -> None:
        self._load = load
        self._on_swap = on_swap
        self._spec: RuntimeSpec | None = None
        self._models: dict[str, ModelSpec] = {}
        self._observed = 0
        self._current: dict[str, LoadedModel] = {}
        self._loaded: OrderedDict[_Key, LoadedModel] = OrderedDict()  # least recently used first
        self._loading: dict[_Key, asyncio.Task[LoadedModel]] = {}
        self._failed: dict[_Key, str] = {}
        self._leaving: list[LoadedModel] = []  # dropped, but not closed yet
        self._one_at_a_time = asyncio.Lock()  # two loads at once would double the peak of memory
        self._changed = asyncio.Event()
        self._converging = asyncio.create_task(self._converge())

    def apply(self, spec: RuntimeSpec) -> None:
        """Make `spec` the desired state and return at once; loading goes on behind.

        A spec older than the one in hand is ignored, the same one again retries what failed.
        Raises InvalidValueError for one that contradicts itself, ConflictError for another
        tenant's.
        """
        _check(spec)
        if self._spec is not None:
            if spec.tenant != self._spec.tenant:
                raise ConflictError("this runtime belongs to another tenant")
            if spec.generation < self._spec.generation:
                return
        self._spec = spec
        self._models = {model.name: model for model in spec.models}
        self._failed.clear()
        self._changed.set()

    async def acquire(self, name: str | None = None, version: int | None = None) -> Lease:
        """Return a lease of a model, loading it first where it is not loaded yet.

        name: None for the default model. version: None for the current one. Raises
        NotFoundError, and NotReadyError with the reason when it cannot be loaded.
        """
        if self._spec is None:
            raise NotReadyError("the runtime has no spec yet")
        name = self._spec.default_model if name is None else name
        model = self.model(name)
        if version is None:
            # The one in force, which is the older one while the wanted one loads or has failed.
            loaded = self._current.get(name)
            key = (name, _find(model, model.current))
        else:
            key = (name, _find(model, version))
            loaded = self._loaded.get(key)
        if loaded is None:
            loaded = await self._load_once(key)
        if not loaded.lease():  # retired while this request waited for it
            return await self.acquire(name, version)
        with suppress(KeyError):
            self._loaded.move_to_end((name, loaded.version))
        return Lease(model=loaded, settings=model.settings)

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
        status = self._status(name, _find(model, model.current if version is None else version))
        return "" if status.state in ("ready", "idle") else status.reason or "it is loading"

    def not_ready(self) -> str:
        """Say why the default model cannot answer yet; empty when it can."""
        if self._spec is None:
            return "the runtime has no spec yet"
        model = self._models[self._spec.default_model]
        if model.name in self._current:
            return ""
        reason = self._failed.get((model.name, _find(model, model.current)))
        if reason is not None:
            return f"the default model {model.name}:{model.current} failed to load: {reason}"
        return f"the default model {model.name}:{model.current} is loading"

    def current(self, name: str) -> LoadedModel | None:
        """Return the version of a model that is in force, None before the first."""
        return self._current.get(name)

    def waiting(self, name: str) -> int:
        """Return how many requests wait for a model of this name, all its versions together."""
        return sum(one.queue.waiting for one in self._loaded.values() if one.ref.name == name)

    def status(self) -> RuntimeStatus:
        """Return what is observed now, one entry for each version that the spec names."""
        reason = self.not_ready()
        return RuntimeStatus(
            tenant=self._spec.tenant if self._spec is not None else "",
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
        stopping = [self._converging, *self._loading.values()]
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        self._current.clear()
        for loaded in list(self._loaded.values()):
            self._drop(loaded)
        await asyncio.gather(*(one.closing for one in self._leaving if one.closing is not None))

    def _status(self, name: str, version: VersionSpec) -> ModelStatus:
        key = (name, version)
        loaded = self._loaded.get(key)
        if loaded is not None:
            return ModelStatus(
                name=name,
                version=version.version,
                state="failed" if loaded.down else "ready",
                reason=loaded.down,
                family=loaded.opened.family,
                input=loaded.opened.input,
                engine=loaded.opened.engine,
                device=loaded.opened.device,
                precision=loaded.opened.precision,
                speed=loaded.opened.speed,
                quality=loaded.opened.quality,
            )
        failed = self._failed.get(key)
        assert self._spec is not None  # it names the version
        due = self._models[name].current == version.version and _loads_ahead(self._spec, name)
        state = "failed" if failed else "loading" if due or key in self._loading else "idle"
        return ModelStatus(name=name, version=version.version, state=state, reason=failed or "")

    async def _converge(self) -> None:
        """Load what the newest spec wants, for ever; a newer one takes over between two loads."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            spec = self._spec
            assert spec is not None  # set before the event
            self._retire_unwanted()
            ahead = [model for model in spec.models if _loads_ahead(spec, model.name)]
            for model in sorted(ahead, key=lambda one: one.name != spec.default_model):
                key = (model.name, _find(model, model.current))
                with suppress(NotReadyError):  # the status says why
                    loaded = self._loaded.get(key) or await self._load_once(key)
                    if self._spec is spec:
                        self._put_in_force(model.name, loaded)
                if self._spec is not spec:
                    break
            else:
                self._observed = spec.generation
                log.info("spec in force", generation=spec.generation)
            self._retire_unwanted()

    def _put_in_force(self, name: str, loaded: LoadedModel) -> None:
        old = self._current.get(name)
        if old is loaded:
            return
        self._current[name] = loaded
        if old is not None:
            self._on_swap(name)
            self._drop(old)

    def _retire_unwanted(self) -> None:
        """Drop what the spec no longer names, and what was loaded on demand beyond the limit."""
        for name in [name for name in self._current if name not in self._models]:
            del self._current[name]
        serving = {id(loaded) for loaded in self._current.values()}
        wanted = {(model.name, one) for model in self._models.values() for one in model.versions}
        waiting = {(name, _find(model, model.current)) for name, model in self._models.items()}
        spare = [
            (key, loaded)
            for key, loaded in self._loaded.items()
            if id(loaded) not in serving and key not in waiting
        ]
        kept = [key for key, _ in spare if key in wanted][-_MOST_ON_DEMAND:]
        for key, loaded in spare:
            if key not in kept:
                self._drop(loaded)

    def _drop(self, loaded: LoadedModel) -> None:
        self._loaded.pop((loaded.ref.name, loaded.version), None)
        loaded.retire()
        leaving = [*self._leaving, loaded]
        self._leaving = [one for one in leaving if one.closing is None or not one.closing.done()]

    async def _load_once(self, key: _Key) -> LoadedModel:
        """Load a version, or wait for the load that is under way; NotReadyError if it failed."""
        failed = self._failed.get(key)
        if failed is not None:
            raise NotReadyError(f"model {key[0]}:{key[1].version} failed to load: {failed}")
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load_now(key))
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)  # a request that gives up does not cost others the load

    async def _load_now(self, key: _Key) -> LoadedModel:
        name, version = key
        try:
            async with self._one_at_a_time:
                loaded = await self._load(name, version)
        except PolyoloError as error:
            reason = error.detail
        except OSError as error:
            reason = f"a process for it cannot be started: {error.strerror}"
        except Exception as error:
            log.exception("a load failed unexpectedly", model=name, version=version.version)
            reason = f"loading failed unexpectedly ({type(error).__name__})"
        else:
            self._loaded[key] = loaded
            if key[0] not in self._current and self._is_current(key):
                self._current[name] = loaded
            self._retire_unwanted()
            log.info(
                "model loaded", model=name, version=version.version, family=loaded.opened.family
            )
            return loaded
        self._failed[key] = reason
        log.warning("model failed to load", model=name, version=version.version, reason=reason)
        raise NotReadyError(f"model {name}:{version.version} failed to load: {reason}")

    def _is_current(self, key: _Key) -> bool:
        model = self._models.get(key[0])
        return model is not None and _find(model, model.current) == key[1]


def _loads_ahead(spec: RuntimeSpec, name: str) -> bool:
    """Say whether a model loads before anybody asks for it.

    All do but the platform's own where the tenant has put another in its place: few ask for it
    then, and it would hold the memory of a process in every runtime.
    """
    return name == spec.default_model or name != STANDARD


def _find(model: ModelSpec, number: int) -> VersionSpec:
    for version in model.versions:
        if version.version == number:
            return version
    raise NotFoundError(f"there is no model version {model.name}:{number}")


def _check(spec: RuntimeSpec) -> None:
    """Raise InvalidValueError for a spec that contradicts itself."""
    names = [model.name for model in spec.models]
    if len(set(names)) != len(names):
        raise InvalidValueError("the spec names a model twice")
    if spec.default_model not in names:
        raise InvalidValueError(f"the spec has no model {spec.default_model!r}, its default")
    for model in spec.models:
        numbers = [version.version for version in model.versions]
        if len(set(numbers)) != len(numbers) or model.current not in numbers:
            raise InvalidValueError(
                f"the spec's versions of {model.name} are not unique, or lack {model.current}"
            )
