"""Brings every runtime to its desired state: observe, decide, act, record, again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from polyolo import telemetry
from polyolo.control.decide import Decision, Desired, Memory, Verb, Wanted, decide, failed
from polyolo.control.scaling import Scale, looks_again, scaled
from polyolo.control.service import erasures, runtimes, tenants
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.runtimes import Mounted, Standing
from polyolo.control.starts import Starts
from polyolo.control.workqueue import RETRY_S, Workers
from polyolo.drivers import Driver
from polyolo.types import OUTDATED, Phase, Plan, RuntimeStatus

_SOON_S = 0.05
"""Until the next piece of an erasure, so that others' changes come in between."""
_TURN_S = 1.0
"""Until one asks again that is not told that its turn to start has come."""
_LISTEN_S = 0.25
"""How long one call of the driver's `wait` listens; bounds how long a stop takes."""
_QUOTED = 300
"""Characters of a driver's error that tenants are told."""


class Reconciler:
    """Workers over all tenants; one more thread listens to the driver."""

    def __init__(
        self,
        ledger: Ledger,
        driver: Driver,
        *,
        locate: Callable[[str, str], str],
        mounted: Mounted,
        discard: Callable[[str], None],
        plans: Sequence[Plan],
        erase: Callable[[str], bool] = lambda _: True,
        leads: Callable[[], bool] = lambda: True,
        tell: Callable[[RuntimeStatus], None] = lambda _: None,
        told: Callable[[int], bool] = lambda _: True,
        workers: int = 8,
        starts: int = 1_000_000,
        elastic: bool = False,
    ) -> None:
        """Prepare; nothing happens before `start`.

        locate, mounted: as `runtimes.spec` takes them. discard: deletes the files of a tenant that
        is gone. plans: those offered. erase: does the next piece of a tenant's erasure
        once its rows are gone, and says whether nothing is left of it. leads: whether this control
        plane is the one that acts. tell: called with what is seen of each runtime. told: whether
        every gateway has a revision. starts: runtimes that start at once; the default is no bound.
        elastic: the place itself adds copies by load, and takes them away again; what is decided
        here is the fewest, and who sleeps.
        """
        self._ledger = ledger
        self._driver = driver
        self._spec = partial(runtimes.spec, ledger, locate=locate, mounted=mounted, offered=plans)
        self._discard = discard
        self._erase = erase
        self._plans = plans
        self._told = told
        self._tell = tell
        self._starts = Starts(starts)
        self._replacements = Starts(1)  # nobody waits for these: one by one
        self._elastic = elastic
        self._memories: dict[str, Memory] = {}
        self._scales: dict[str, Scale] = {}
        self._revisions: dict[str, int] = {}
        """Of each tenant's last change."""
        self._epoch = ledger.clock() - time.monotonic()
        self._stopping = threading.Event()
        self._log = telemetry.logger("reconciler")
        self._workers = Workers(
            "reconciler", ledger, self._step, leads=leads, first=self._first, threads=workers
        )
        self._listener = threading.Thread(target=self._listen, name="listener", daemon=True)

    def start(self) -> None:
        """Record what there is now and begin to work."""
        self._ledger.listeners.append(self._changed)  # before that of the workers
        self._workers.start()
        self._listener.start()

    def _first(self) -> set[str]:
        """Record what there is now; return the tenants that there is something to do for."""
        observed = self._driver.observe()
        standings = runtimes.every(self._ledger, self._plans)
        # What was recorded before a restart may be long untrue: first of all tell what is.
        first: dict[str, RuntimeStatus] = {}
        due: set[str] = set()
        for tenant, standing in standings.items():
            desired = self._desired(tenant, standing)
            decision = decide(desired, observed.get(tenant), Memory(), 0.0)
            if decision.status != standing.recorded:
                first[tenant] = decision.status
            if decision.verb is not Verb.NOTHING or decision.again_in is not None:
                due.add(tenant)
        runtimes.record(self._ledger, first)
        orphans = observed.keys() - standings  # they have no row
        return due | orphans | set(erasures.unfinished(self._ledger))

    def stop(self) -> None:
        """Finish the steps in hand and end the threads. Runtimes are left as they are."""
        self._stopping.set()
        if self._changed in self._ledger.listeners:
            self._ledger.listeners.remove(self._changed)
        self._workers.stop()
        if self._listener.is_alive():
            self._listener.join()

    def alive(self) -> bool:
        """Say whether every thread is at work."""
        return self._workers.alive() and self._listener.is_alive()

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these tenants: something was changed, here or by another control plane.

        urgent: somebody waits for their runtimes, which start before others.
        """
        if urgent:
            tenants = list(tenants)
            for tenant in tenants:
                self._starts.urge(tenant)
        self._workers.look_at(tenants)

    def _changed(self, revision: int, tenant: str | None) -> None:
        if tenant is not None:
            self._revisions[tenant] = revision

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._workers.look_at(self._driver.wait(_LISTEN_S))
            except Exception:  # noqa: BLE001  # whatever it was, the thread must live on
                self._log.exception("cannot listen to the driver")
                self._stopping.wait(RETRY_S)

    def _step(self, tenant: str) -> float | None:
        """Take one tenant's next step; return the seconds until the one after."""
        standing = runtimes.standing(self._ledger, tenant, self._plans)
        desired = self._desired(tenant, standing)
        observed, decision = self._look(desired)
        status = decision.status
        if standing is not None and _is_news_of_failure(standing.recorded, status):
            runtimes.record(self._ledger, {tenant: status})  # first of all: the cure takes time
        outdated = status.observed_generation == OUTDATED
        turns = self._replacements if outdated else self._starts
        begins = outdated or status.phase in (Phase.STARTING, Phase.FAILED)
        begins = begins and decision.verb is Verb.APPLY
        if begins and not turns.may(tenant, time.monotonic()):
            again: float | None = _TURN_S
        else:
            again, status = self._do(desired, decision, observed)
        over = [] if status.phase is Phase.STARTING else self._starts.over(tenant)
        if status.observed_generation != OUTDATED:
            over += self._replacements.over(tenant)
        self._workers.look_at(over)
        if decision.verb is Verb.FORGET or standing is None:
            return again
        status = self._dated(status)
        if standing.recorded != status:
            runtimes.record(self._ledger, {tenant: status})
        if observed is not None:
            self._tell(observed)
        later = looks_again(standing.demand, self._scales[tenant], now=time.monotonic())
        return min((seconds for seconds in (again, later) if seconds is not None), default=None)

    def _do(
        self, desired: Desired, decision: Decision, observed: RuntimeStatus | None
    ) -> tuple[float | None, RuntimeStatus]:
        """Do what was decided; return when to look again, and what to tell."""
        tenant = desired.tenant
        self._memories[tenant] = decision.memory
        try:
            self._act(desired, decision)
            if decision.verb is Verb.FORGET and not self._erase(tenant):
                return _SOON_S, decision.status
        except OSError as error:
            self._log.warning(
                "the driver failed", tenant=tenant, verb=decision.verb, error=str(error)
            )
            return self._after_failure(tenant, decision, observed, error)
        if decision.verb is Verb.APPLY:  # where a warm process was there, it is ready by now
            _, after = self._look(desired)
            if after.verb is Verb.NOTHING:
                self._memories[tenant] = after.memory
                return after.again_in, after.status
        return decision.again_in, decision.status

    def _desired(self, tenant: str, standing: Standing | None) -> Desired:
        if standing is None:
            return Desired(tenant=tenant, wanted=Wanted.GONE)
        before, demand, most = self._scales.get(tenant, Scale()), standing.demand, 0
        if self._elastic:
            demand, most = replace(demand, most=0), demand.most
        scale = scaled(demand, before, now=time.monotonic(), wall=self._ledger.clock())
        self._scales[tenant] = scale
        return replace(standing.desired, replicas=scale.replicas, max_replicas=most)

    def _look(self, desired: Desired) -> tuple[RuntimeStatus | None, Decision]:
        tenant = desired.tenant
        observed = self._driver.observe([tenant]).get(tenant)
        memory = self._memories.get(tenant, Memory())
        told = self._told(self._revisions.get(tenant, 0))
        return observed, decide(desired, observed, memory, time.monotonic(), told=told)

    def _dated(self, status: RuntimeStatus) -> RuntimeStatus:
        """Return what to tell, with the time at which a start is due that is being put off."""
        due = self._memories.get(status.tenant, Memory()).restart_at
        if status.phase is not Phase.FAILED or due is None:
            return status
        return replace(status, retry_at=math.ceil(due + self._epoch))

    def _act(self, desired: Desired, decision: Decision) -> None:
        tenant = desired.tenant
        match decision.verb:
            case Verb.APPLY:
                self._driver.apply(replace(self._spec(tenant), replicas=desired.replicas))
            case Verb.REMOVE:
                self._driver.remove(tenant)
            case Verb.FORGET:
                for known in (self._memories, self._scales, self._revisions):
                    known.pop(tenant, None)
                if tenants.forget(self._ledger, tenant):
                    self._discard(tenant)
            case Verb.NOTHING:
                pass

    def _after_failure(
        self, tenant: str, decision: Decision, observed: RuntimeStatus | None, error: OSError
    ) -> tuple[float, RuntimeStatus]:
        if observed is not None and observed.phase is Phase.READY:
            return RETRY_S, observed  # it serves what it has; the new spec is tried again
        reason = "it could not be started"
        if error.errno is None:  # a driver's own words; the system's may name this machine's paths
            reason += f": {str(error)[:_QUOTED]}"
        memory = failed(decision.memory, reason, time.monotonic())
        self._memories[tenant] = memory
        status = RuntimeStatus(tenant=tenant, phase=Phase.FAILED, reason=memory.reason)
        return RETRY_S, status


def _is_news_of_failure(before: RuntimeStatus, now: RuntimeStatus) -> bool:
    """Say whether the runtime, or a copy of it, has failed since."""
    failed_whole = now.phase is Phase.FAILED and before.phase is not Phase.FAILED
    failed_copy = now.phase is Phase.READY and now.reason != "" and before.reason == ""
    return failed_whole or failed_copy
