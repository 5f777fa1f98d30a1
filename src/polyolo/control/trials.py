"""Ends what has to be ended: versions that keep crashing, rollouts that are over by their rule.

A thread over a queue of tenants whose runtimes have something to tell. It decides from what is
reported, again and again, and never relies on having been told once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from polyolo import telemetry
from polyolo.control.gate import Gate
from polyolo.control.service import rollouts, versions
from polyolo.control.service.lease import DeposedError
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.versions import PLATFORM
from polyolo.control.workqueue import WorkQueue
from polyolo.errors import BelowToleranceError, ConflictError, NotFoundError, PolyoloError
from polyolo.types import ModelStatus, RuntimeStatus

_RETRY_S = 2.0


class Trials:
    """One thread; `tell` it what runtimes report."""

    def __init__(
        self, ledger: Ledger, gate: Gate, *, leads: Callable[[], bool] = lambda: True
    ) -> None:
        """Prepare; nothing happens before `start`. leads: whether this control plane acts."""
        self._ledger = ledger
        self._gate = gate
        self._leads = leads
        self._told: dict[str, RuntimeStatus] = {}
        self._queue = WorkQueue()
        self._log = telemetry.logger("trials")
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is in hand and end the thread."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join()

    def alive(self) -> bool:
        """Say whether the thread is at work."""
        return self._thread.is_alive()

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        """Do nothing: what was changed shows in what the runtimes report next."""

    def tell(self, status: RuntimeStatus) -> None:
        """Take up what a runtime reports, if something may follow from it. Any thread."""
        if any(_matters(model) for model in status.models):
            self._told[status.tenant] = status
            self._queue.put(status.tenant)

    def _work(self) -> None:
        while (tenant := self._queue.take()) is not None:
            again: float | None = None
            try:
                if self._leads():
                    self._step(self._told[tenant])
            except DeposedError as error:  # this thread is about to be told to end
                self._log.info("a step came too late", tenant=tenant, error=str(error))
            except Exception:  # noqa: BLE001  # one tenant's trouble is no other tenant's
                self._log.exception("a step failed", tenant=tenant)
                again = _RETRY_S
            finally:
                if again is not None:
                    self._queue.put(tenant, after=again)
                self._queue.done(tenant)

    def _step(self, status: RuntimeStatus) -> None:
        tenant = status.tenant
        for model in status.models:
            if model.state == "failed" and model.crashes:
                versions.take_out(
                    self._ledger,
                    tenant,
                    model.name,
                    model.version,
                    model.reason,
                    status.observed_generation,
                )
        for name, number, reason in rollouts.follow(self._ledger, tenant, status):
            self._promote(tenant, name, number, reason)

    def _promote(self, tenant: str, name: str, number: int, reason: str) -> None:
        try:
            self._gate.put_in_use(PLATFORM, tenant, name, number, why=reason)
        except (BelowToleranceError, ConflictError) as error:
            rollouts.abort(self._ledger, PLATFORM, tenant, name, error.detail)
        except NotFoundError:
            return  # deleted meanwhile
        except PolyoloError as error:
            self._log.warning("a promotion is put off", tenant=tenant, reason=error.detail)


def _matters(model: ModelStatus) -> bool:
    return model.rollout is not None or (model.state == "failed" and model.crashes > 0)
