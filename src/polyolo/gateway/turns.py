"""Shares a machine's runtimes out between tenants: whose request goes next, and how many at once.

So many requests are inside runtimes at once, all others wait at the gateway, where waiting costs
nothing. The next one is that of the tenant which has had the least for its weight, by start-time
fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): what counts is the time that its requests
spent inside, measured here, not how many they were. A tenant that asks for less than its share
finds itself at the front; one that asks for more waits behind its own requests.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Protocol, Self

from polyolo.errors import OverloadedError, PolyoloError

_FIRST_S = 0.05  # a tenant's first request, before any was measured: a small model's on a CPU
_SMOOTH = 0.2  # weight of the newest measurement in a tenant's estimate


class Watcher(Protocol):
    """Is told who waits, by the tenant's name."""

    def waits(self, name: str, change: int) -> None:
        """Take note of one more that waits (+1) or one less (-1)."""

    def shed(self, name: str, reason: str) -> None:
        """Take note of one that was refused while it waited, or instead of waiting."""


@dataclass(slots=True, eq=False)
class _Flow:
    """One tenant's requests."""

    tag: float = 0.0
    """Virtual time at which its next request starts: seconds inside, over the weight."""
    weight: float = 1.0
    estimate: float = _FIRST_S
    """Seconds that a request of it spends inside."""
    waiting: deque[Turn] = field(default_factory=deque)
    inside: int = 0
    """Requests of it that have been let in and are not done."""
    entry: int = 0
    """Number of its valid place in the queue of tenants."""

    @property
    def active(self) -> bool:
        """True while something of it is inside or waits."""
        return self.inside > 0 or bool(self.waiting)


@dataclass(slots=True, eq=False)
class Turn:
    """One request's turn, as a context: entering waits for it. `end` ends it before the context
    does, where the runtime has done its work by then. The fields are for `Turns`."""

    turns: Turns
    flow: _Flow
    name: str
    deadline: float
    future: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    started: float = -1.0
    """When it was let in; -1 before and after."""
    charged: float = 0.0
    """Seconds inside that its tenant's tag tells of."""
    inside: bool = False
    """It keeps other tenants out."""
    waited_s: float = 0.0

    async def __aenter__(self) -> Self:
        """Wait for the turn. Raises OverloadedError if it is hopeless, now or later."""
        if self.turns.slots and not self.turns.enter(self):
            assert self.future is not None
            since = self.turns.clock()
            try:
                await self.future
            except BaseException:
                self.turns.leave(self)
                raise
            self.waited_s = self.turns.clock() - since
        return self

    def end(self) -> None:
        """Let the next one in; no effect the second time."""
        if self.started >= 0.0:
            self.turns.end(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the turn."""
        self.end()


class Turns:
    """Who is inside, who waits, and what each tenant has had. On the event loop's thread."""

    def __init__(
        self,
        slots: int,
        watcher: Watcher,
        *,
        lease_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Let so many in at once; 0: everybody.

        lease_s: seconds after which a request that is still inside no longer keeps other tenants
        out. It goes on, and what it takes is counted: a runtime that hangs holds up nobody else's.
        """
        self.slots = slots
        self.clock = clock
        self._watcher = watcher
        self._lease_s = lease_s
        self._flows: dict[str, _Flow] = {}
        self._queue: list[tuple[float, int, _Flow]] = []
        self._numbers = count(1)
        self._inside = 0
        self._active = 0
        self._weights = 0.0  # of those active
        self._now = 0.0  # virtual time: the tag of the last one let in
        self._latest = 0.0  # the highest tag given so far

    def turn(self, tenant: str, name: str, weight: float, deadline: float) -> Turn:
        """Return a turn to wait for. name: the tenant's. deadline: on `clock`."""
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow()
        if not flow.active:  # else the sum of weights would not add up
            flow.weight = weight
        return Turn(self, flow, name, deadline)

    def shed(self, tenant: str) -> bool:
        """Refuse the tenant's request that has waited longest, if one waits; say whether."""
        flow = self._flows.get(tenant)
        if flow is None or not flow.waiting:
            return False
        turn = flow.waiting[0]
        self._refuse(turn, "full", self._overloaded(flow, len(flow.waiting)))
        return True

    def keep(self, tenants: set[str]) -> None:
        """Forget tenants that are gone, once nothing of them is here."""
        for tenant in [t for t, flow in self._flows.items() if not flow.active]:
            if tenant not in tenants:
                del self._flows[tenant]

    def enter(self, turn: Turn) -> bool:
        """Let a request in, or have it wait. Raises OverloadedError.

        A tenant that has less inside than its share of the slots does not wait for those that have
        more: so there may be up to twice as many inside as there are slots, for a moment.
        """
        flow = turn.flow
        others = self._weights - (flow.weight if flow.active else 0.0)
        share = self.slots * flow.weight / (others + flow.weight)
        if flow.inside < self.slots and (self._inside < self.slots or flow.inside + 1 <= share):
            self._activate(flow)
            flow.tag = max(flow.tag, self._now)
            self._start(turn)
            return True
        wait = self._wait_s(flow, len(flow.waiting) + 1)
        if self.clock() + wait > turn.deadline:
            self._watcher.shed(turn.name, "hopeless")
            raise self._overloaded(flow, len(flow.waiting))
        turn.future = asyncio.get_running_loop().create_future()
        self._activate(flow)
        flow.waiting.append(turn)
        self._watcher.waits(turn.name, 1)
        if len(flow.waiting) == 1:
            flow.tag = max(flow.tag, self._now)
            self._queue_up(flow)
        return False

    def _activate(self, flow: _Flow) -> None:
        if not flow.active:
            self._active += 1
            self._weights += flow.weight

    def _deactivate(self, flow: _Flow) -> None:
        if not flow.active:
            self._active -= 1
            self._weights = self._weights - flow.weight if self._active else 0.0

    def _queue_up(self, flow: _Flow) -> None:
        flow.entry = next(self._numbers)
        heapq.heappush(self._queue, (flow.tag, flow.entry, flow))

    def _start(self, turn: Turn) -> None:
        flow = turn.flow
        if self._inside < self.slots:
            self._now = max(self._now, flow.tag)
        turn.charged = flow.estimate
        flow.tag += flow.estimate / flow.weight
        self._latest = max(self._latest, flow.tag)
        self._inside += 1
        flow.inside += 1
        turn.inside = True
        turn.started = self.clock()
        turn.timer = asyncio.get_running_loop().call_later(self._lease_s, self._lapse, turn)

    def _next(self) -> None:
        while self._inside < self.slots and self._queue:
            tag, entry, flow = heapq.heappop(self._queue)
            if entry != flow.entry or not flow.waiting or flow.inside >= self.slots:
                continue  # the last comes back when one of its own is done
            if tag < flow.tag:  # it has been charged since
                self._queue_up(flow)
                continue
            turn = flow.waiting.popleft()
            self._watcher.waits(turn.name, -1)
            assert turn.future is not None
            if not turn.future.done():  # else it has just stopped waiting
                self._start(turn)
                turn.future.set_result(None)
            self._deactivate(flow)
            if flow.waiting:
                self._queue_up(flow)
        if not self._inside and not self._queue:
            self._now = self._latest  # nobody is owed anything once all are served

    def _remove(self, turn: Turn) -> None:
        turn.flow.waiting.remove(turn)
        self._deactivate(turn.flow)
        self._watcher.waits(turn.name, -1)

    def _out(self, turn: Turn) -> None:
        """Have a request no longer keep other tenants out."""
        if turn.inside:
            turn.inside = False
            self._inside -= 1

    def leave(self, turn: Turn) -> None:
        """Take away a request that stopped waiting, or whose turn came at that moment."""
        if turn.started >= 0.0:
            self.end(turn)
        elif turn in turn.flow.waiting:
            self._remove(turn)

    def _refuse(self, turn: Turn, reason: str, error: PolyoloError) -> None:
        self._remove(turn)
        self._watcher.shed(turn.name, reason)
        assert turn.future is not None
        if not turn.future.done():
            turn.future.set_exception(error)

    def _lapse(self, turn: Turn) -> None:
        """Have a request that takes long go on without its slot."""
        self._charge(turn)
        self._out(turn)
        self._next()

    def end(self, turn: Turn) -> None:
        """Take note that a request is done, and let the next one in."""
        assert turn.timer is not None
        turn.timer.cancel()
        flow = turn.flow
        took = self._charge(turn)
        flow.estimate += _SMOOTH * (took - flow.estimate)
        turn.started = -1.0
        self._out(turn)
        flow.inside -= 1
        self._deactivate(flow)
        if flow.waiting and flow.inside == self.slots - 1:
            self._queue_up(flow)
        self._next()

    def _charge(self, turn: Turn) -> float:
        """Have the tenant's tag tell what the request took so far, and return that, seconds."""
        flow = turn.flow
        took = self.clock() - turn.started
        more = (took - turn.charged) / flow.weight
        turn.charged = took
        flow.tag += more
        self._latest = max(self._latest, flow.tag)
        if more < 0 and flow.waiting:
            self._queue_up(flow)  # further to the front than it stands
        return took

    def _wait_s(self, flow: _Flow, place: int) -> float:
        """Return the seconds until the request at that place of the tenant's is let in, at the
        share that the tenant has at present."""
        others = self._weights - (flow.weight if flow.active else 0.0)
        return place * flow.estimate * (others + flow.weight) / (self.slots * flow.weight)

    def _overloaded(self, flow: _Flow, waiting: int) -> OverloadedError:
        return OverloadedError(
            "more requests of this tenant wait than can be answered in time; come again shortly",
            retry_after=self._wait_s(flow, waiting),
        )
