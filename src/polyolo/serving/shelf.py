"""Keeps the open versions of a runtime's models: opens each once, unloads where memory is short.

Everything here runs on the event loop; opening itself happens in the models' own processes.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from polyolo import telemetry
from polyolo.errors import NotReadyError, PolyoloError
from polyolo.serving.loaded import LoadedModel
from polyolo.serving.memory import Room
from polyolo.types import VersionSpec

Key = tuple[str, VersionSpec]
"""A model's name and one of its versions."""


class Loader(Protocol):
    """Opens models."""

    async def __call__(
        self, name: str, version: VersionSpec, *, background: bool = False
    ) -> LoadedModel:
        """Load a model's version. Raises PolyoloError or OSError.

        background: it gets only what those leave over that answer requests.
        """
        ...


Weigh = Callable[[VersionSpec, int, int, Sequence[int]], Room]
"""Returns the room for one more version. Takes the version, the bytes that it is known to take
(0: unknown), the bytes that the runtime may use (0: all), and the ids of its processes."""

Fetch = Callable[[VersionSpec], Awaitable[None]]
"""Has a version's files here. Raises NotReadyError."""

log = telemetry.logger("shelf")


async def at_hand(_: VersionSpec) -> None:
    """Fetch nothing: all files are here; see Fetch."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version cannot be used. crashes: 0 for one that did not load."""

    reason: str
    crashes: int = 0


class Owner(Protocol):
    """Who knows what the open versions are for."""

    def opened(self, key: Key, loaded: LoadedModel) -> None:
        """Learn of a version that was opened."""

    def needs(self, loaded: LoadedModel, beside: str) -> bool:
        """Say whether a version must stay open while one of the model `beside` is opened."""

    def unloaded(self, loaded: LoadedModel) -> None:
        """Learn of a version that was unloaded, since memory is short."""


class Shelf:
    """Open versions, the least recently used first."""

    def __init__(self, load: Loader, weigh: Weigh, owner: Owner, fetch: Fetch = at_hand) -> None:
        self.fetch = fetch
        self._load = load
        self._weigh = weigh
        self._owner = owner
        self.limit_bytes = 0
        """What the runtime may use, all its processes together; 0: whatever there is."""
        self.failures: dict[Key, Failure] = {}
        """Versions that are not tried again."""
        self._open: OrderedDict[Key, LoadedModel] = OrderedDict()
        self._apart: list[LoadedModel] = []
        self._leaving: list[LoadedModel] = []  # retired, but not closed yet
        self._loading: dict[Key, asyncio.Task[LoadedModel]] = {}
        self._weights: dict[Key, int] = {}  # what versions were seen to take
        self._one_at_a_time = asyncio.Lock()  # two loads at once would double the peak of memory

    def get(self, key: Key) -> LoadedModel | None:
        """Return a version if it is open."""
        return self._open.get(key)

    def items(self) -> list[tuple[Key, LoadedModel]]:
        """Return what is open, the least recently used first."""
        return list(self._open.items())

    def used(self, loaded: LoadedModel) -> None:
        """Remember that a request asked for a version."""
        key = (loaded.ref.name, loaded.version)
        if key in self._open:
            self._open.move_to_end(key)

    def is_loading(self, key: Key) -> bool:
        """Say whether a version is being opened."""
        return key in self._loading

    async def load(self, key: Key) -> LoadedModel:
        """Open a version, or wait for the one who does already.

        Raises NotReadyError: with what is in `failures` then, or for lack of memory.
        """
        failed = self.failures.get(key)
        if failed is not None:
            raise NotReadyError(f"model {key[0]}:{key[1].version} failed to load: {failed.reason}")
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load_now(key))
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)  # a request that gives up does not cost others the load

    async def load_apart(self, key: Key) -> LoadedModel:
        """Open a version a second time, for copies only; nothing is unloaded for it.

        Raises PolyoloError.
        """
        loaded = await self._opened(key, background=True)
        self._apart.append(loaded)
        return loaded

    def drop(self, loaded: LoadedModel) -> None:
        """Close a version, with its last request if it has any."""
        key = (loaded.ref.name, loaded.version)
        if loaded in self._apart:
            self._apart.remove(loaded)
        elif self._open.get(key) is loaded:
            del self._open[key]
        loaded.retire()
        leaving = [*self._leaving, loaded]
        self._leaving = [one for one in leaving if one.closing is None or not one.closing.done()]

    def room(self, key: Key, instead_of: LoadedModel | None = None) -> Room:
        """Return what opening a version takes, and what is left for it.

        instead_of: the version whose place it is to have.
        """
        known = max(self._weights.get(key, 0), instead_of.weight if instead_of is not None else 0)
        pids = [os.getpid(), *(one.pid for one in self._holding_memory())]
        return self._weigh(key[1], known, self.limit_bytes, pids)

    async def close(self) -> None:
        """Stop loading and close everything; no request holds a model any more."""
        stopping = list(self._loading.values())
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        for loaded in [*self._open.values(), *self._apart]:
            self.drop(loaded)
        await asyncio.gather(*(one.closing for one in self._leaving if one.closing is not None))

    async def _load_now(self, key: Key) -> LoadedModel:
        name, version = key
        try:
            loaded = await self._opened(key)
        except NotReadyError:  # for lack of memory: the next one who asks may find some
            raise
        except PolyoloError as error:
            reason = error.detail
        else:
            self._open[key] = loaded
            self._owner.opened(key, loaded)
            log.info("model loaded", model=name, version=version.version)
            return loaded
        self.failures[key] = Failure(reason)
        log.warning("model failed to load", model=name, version=version.version, reason=reason)
        raise NotReadyError(f"model {name}:{version.version} failed to load: {reason}")

    async def _opened(self, key: Key, *, background: bool = False) -> LoadedModel:
        """Open a version when there is room for it. Raises PolyoloError, whatever goes wrong."""
        name, version = key
        try:
            await self.fetch(version)  # or nobody knows how large it is
            async with self._one_at_a_time:
                await self._make_room(key, unload=not background)
                loaded = await self._load(name, version, background=background)
        except PolyoloError:
            raise
        except OSError as error:
            raise PolyoloError(f"a process for it cannot be started: {error.strerror}") from None
        except Exception as error:
            log.exception("a load failed unexpectedly", model=name, version=version.version)
            raise PolyoloError(f"loading failed unexpectedly ({type(error).__name__})") from None
        self._weights[key] = loaded.weight
        return loaded

    async def _make_room(self, key: Key, *, unload: bool) -> None:
        """Unload until a version fits; NotReadyError when that does not help."""
        old = next((one for (name, _), one in self._open.items() if name == key[0]), None)
        while (room := self.room(key, old)).short:
            idle = self._least_used(key[0]) if unload else None
            if idle is not None:
                log.info("model unloaded", model=idle.ref.name, version=idle.ref.version)
                self.drop(idle)
                self._owner.unloaded(idle)
                if idle.closing is not None:
                    await asyncio.wait([idle.closing])
            elif closing := self._closing():  # they give their memory back in a moment
                await asyncio.wait(closing)
            elif any(self._holding_memory()):
                raise room.refusal()
            else:
                return  # alone it may try

    def _least_used(self, beside: str) -> LoadedModel | None:
        """Return what may be unloaded: nobody holds it, and it is not needed."""
        for loaded in self._open.values():
            if not loaded.leased and not self._owner.needs(loaded, beside):
                return loaded
        return None

    def _closing(self) -> list[asyncio.Task[None]]:
        """Return what goes on of closing what no request holds any more."""
        found = [leaving.closing for leaving in self._leaving]
        return [closing for closing in found if closing is not None and not closing.done()]

    def _holding_memory(self) -> Iterator[LoadedModel]:
        yield from self._open.values()
        yield from self._apart
        for leaving in self._leaving:
            if leaving.closing is None or not leaving.closing.done():
                yield leaving
