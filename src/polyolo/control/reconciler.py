"""Brings every runtime to its desired state: observe, decide, act, record, again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from polyolo import telemetry
from polyolo.control.decide import Decision, Desired, Memory, Verb, Wanted, decide, failed
from polyolo.control.service import runtimes, tenants
from polyolo.control.service.lease import DeposedError
from polyolo.control.service.ledger import Ledger
from polyolo.control.workqueue import WorkQueue
from polyolo.drivers import Driver
from polyolo.types import Phase, RuntimeStatus

_RETRY_S = 1.0
"""Until the next look after one that failed for a reason outside the runtime (database busy)."""
_UNSURE_S = 0.25
"""Until the next look while it is not sure that this control plane is the one that acts."""
_LISTEN_S = 0.25
"""How long one call of the driver's `wait` listens; bounds how long a stop takes."""


class Reconciler:
    """Worker threads over a queue of tenants; one more listens to the driver."""

    def __init__(
        self,
        ledger: Ledger,
        driver: Driver,
        *,
        locate: Callable[[str], str],
        discard: Callable[[set[str]], None],
        leads: Callable[[], bool] = lambda: True,
        workers: int = 4,
    ) -> None:
        """Prepare; nothing happens before `start`.

        locate: where the model file with a digest is. discard: deletes those of the files
        with these digests that nobody needs. leads: whether this control plane is the one that
        acts; while it is not, steps wait.
        """
        self._ledger = ledger
        self._driver = driver
        self._locate = locate
        self._discard = discard
        self._leads = leads
        self._queue = WorkQueue()
        self._memories: dict[str, Memory] = {}
        self._stopping = threading.Event()
        self._log = telemetry.logger("reconciler")
        names = [f"reconciler-{number}" for number in range(workers)]
        self._threads = [
            *(threading.Thread(target=self._work, name=name, daemon=True) for name in names),
            threading.Thread(target=self._listen, name="reconciler-listener", daemon=True),
        ]

    def start(self) -> None:
        """Record what there is now, queue every tenant and begin to work."""
        self._ledger.listeners.append(self._changed)
        observed = self._driver.observe()
        standings = runtimes.every(self._ledger)
        # What was recorded before a restart may be long untrue: first of all tell what is.
        first = {
            tenant: decide(standing.desired, observed.get(tenant), Memory(), 0.0).status
            for tenant, standing in standings.items()
        }
        runtimes.record(self._ledger, first)
        for tenant in {*observed, *standings}:  # a runtime without a row is an orphan
            self._queue.put(tenant)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the steps in hand and end the threads. Runtimes are left as they are."""
        self._stopping.set()
        if self._changed in self._ledger.listeners:
            self._ledger.listeners.remove(self._changed)
        self._queue.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def alive(self) -> bool:
        """Say whether every thread is at work."""
        return all(thread.is_alive() for thread in self._threads)

    def look_at(self, tenants: Iterable[str]) -> None:
        """Look at these tenants: something was changed, here or by another control plane."""
        for tenant in tenants:
            self._queue.put(tenant)

    def _changed(self, _: int, tenant: str | None) -> None:
        if tenant is not None:
            self._queue.put(tenant)

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                for tenant in self._driver.wait(_LISTEN_S):
                    self._queue.put(tenant)
            except Exception:  # noqa: BLE001  # whatever it was, the thread must live on
                self._log.exception("cannot listen to the driver")
                self._stopping.wait(_RETRY_S)

    def _work(self) -> None:
        while (tenant := self._queue.take()) is not None:
            again: float | None = _RETRY_S
            try:
                again = self._step(tenant)
            except DeposedError as error:  # this thread is about to be told to end
                self._log.info("a step came too late", tenant=tenant, error=str(error))
            except Exception:  # noqa: BLE001  # one tenant's trouble is no other tenant's
                self._log.exception("a step failed", tenant=tenant)
            finally:
                if again is not None:
                    self._queue.put(tenant, after=again)
                self._queue.done(tenant)

    def _step(self, tenant: str) -> float | None:
        """Take one tenant's next step; return the seconds until the one after."""
        if not self._leads():
            return _UNSURE_S
        standing = runtimes.standing(self._ledger, tenant)
        desired = standing.desired if standing else Desired(tenant=tenant, wanted=Wanted.GONE)
        observed = self._driver.observe([tenant]).get(tenant)
        memory = self._memories.get(tenant, Memory())
        decision = decide(desired, observed, memory, time.monotonic())
        self._memories[tenant] = decision.memory
        again = decision.again_in
        status = decision.status
        try:
            self._act(tenant, decision)
        except OSError as error:
            self._log.warning(
                "the driver failed", tenant=tenant, verb=decision.verb, error=str(error)
            )
            again, status = self._after_failure(tenant, decision, observed)
        if standing is not None and standing.recorded != status and decision.verb != Verb.FORGET:
            runtimes.record(self._ledger, {tenant: status})
        return again

    def _act(self, tenant: str, decision: Decision) -> None:
        match decision.verb:
            case Verb.APPLY:
                self._driver.apply(runtimes.spec(self._ledger, tenant, self._locate))
            case Verb.REMOVE:
                self._driver.remove(tenant)
            case Verb.FORGET:
                self._memories.pop(tenant, None)
                self._discard(tenants.forget(self._ledger, tenant))
            case Verb.NOTHING:
                pass

    def _after_failure(
        self, tenant: str, decision: Decision, observed: RuntimeStatus | None
    ) -> tuple[float, RuntimeStatus]:
        if observed is not None and observed.phase is Phase.READY:
            return _RETRY_S, observed  # it serves what it has; the new spec is tried again
        memory = failed(decision.memory, "it could not be started", time.monotonic())
        self._memories[tenant] = memory
        status = RuntimeStatus(tenant=tenant, phase=Phase.FAILED, reason=memory.reason)
        return _RETRY_S, status
