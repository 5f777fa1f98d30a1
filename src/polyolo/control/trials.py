"""Ends what has to be ended: versions that keep crashing, rollouts that are over by their rule.

It decides from what is reported, again and again, and never relies on having been told once.
"""

from __future__ import annotations

from collections.abc import Callable

from polyolo import telemetry
from polyolo.control.gate import Gate
from polyolo.control.service import rollouts, versions
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.versions import PLATFORM
from polyolo.control.workqueue import Workers
from polyolo.errors import BelowToleranceError, ConflictError, NotFoundError, PolyoloError
from polyolo.types import ModelStatus, RuntimeStatus


class Trials:
    """What its worker does about what runtimes report; `tell` it that."""

    def __init__(
        self, ledger: Ledger, gate: Gate, *, leads: Callable[[], bool] = lambda: True
    ) -> None:
        """Prepare; nothing happens before the worker starts. leads: whether this control plane
        acts."""
        self._ledger = ledger
        self._gate = gate
        self._told: dict[str, RuntimeStatus] = {}
        self._log = telemetry.logger("trials")
        self.workers = Workers("trials", ledger, self._step, leads=leads)

    def tell(self, status: RuntimeStatus) -> None:
        """Take up what a runtime reports, if something may follow from it. Any thread."""
        if any(_matters(model) for model in status.models):
            self._told[status.tenant] = status
            self.workers.look_at([status.tenant])

    def _step(self, tenant: str) -> None:
        status = self._told.pop(tenant, None)
        if status is None:  # something was changed: what comes of it, the next report shows
            return
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
