"""What the routes of the control API work with, and how an answer waits for its own effect."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from polyolo.control.arrivals import Arrivals
from polyolo.control.artifacts import Artifacts
from polyolo.control.changes import Changes
from polyolo.control.decide import Wanted
from polyolo.control.external import External
from polyolo.control.gate import Gate
from polyolo.control.guesses import Guesses
from polyolo.control.leader import Leader
from polyolo.control.passwords import Passwords
from polyolo.control.service import activity, runtimes
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.runtimes import Standing
from polyolo.control.service.signing import Signer
from polyolo.control.service.storages import Storages
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.control.throttle import Throttle
from polyolo.sandbox.layers import Isolation
from polyolo.types import Phase, RuntimeStatus

IN_FORCE_S = 10.0
"""How long an answer waits for the runtime to have its change in force; loading a large model
takes a few seconds, and a client may be waiting at the other end."""
AT_GATEWAYS_S = 1.0
"""How long an answer waits for the gateways to have its change; they take milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The parts of a running control plane."""

    settings: ControlSettings
    operator_digest: str
    ledger: Ledger
    store: Artifacts
    storages: Storages
    arrivals: Arrivals
    gate: Gate
    changes: Changes
    leader: Leader
    isolation: Isolation
    token_signer: Signer
    vault: Vault
    passwords: Passwords
    guesses: Guesses
    registrations: Throttle
    """By the address that they come from."""
    external: External | None = None
    """Sign-in through the operator's provider; None without one."""

    async def told(self) -> None:
        """Wait until the gateways know of what has been changed so far."""
        await self.changes.at_gateways(self.changes.revision, AT_GATEWAYS_S)

    async def in_force(self, tenant: str) -> None:
        """Wait until the tenant's runtime serves what it should, so that its owner sees it so.

        Not for a runtime that sleeps, is failing or meant to be down, and not for ever.
        """
        await self._converged(tenant)
        await self.told()

    async def awake(self, tenant: str, seconds: float) -> RuntimeStatus:
        """Have a tenant's runtime awake, and return its status once it answers or has failed.

        After `seconds` the status is whatever it is then. Raises NotFoundError.
        """
        mine = self.leader.leads()
        await run_in_threadpool(activity.wanted, self.ledger, tenant, tell=not mine)
        self.leader.look_at([tenant], urgent=True)
        deadline = self.ledger.clock() + seconds
        while True:
            revision = self.changes.revision
            status = await run_in_threadpool(runtimes.status, self.ledger, tenant)
            left = deadline - self.ledger.clock()
            if status.phase in (Phase.READY, Phase.FAILED) or left <= 0 or self.changes.closed:
                return status
            await self.changes.until(lambda: self.changes.revision > revision, left)  # noqa: B023

    async def _standing(self, tenant: str) -> Standing | None:
        return await run_in_threadpool(runtimes.standing, self.ledger, tenant, self.settings.plans)

    async def _converged(self, tenant: str) -> None:
        clock = self.ledger.clock
        deadline = clock() + IN_FORCE_S
        while (left := deadline - clock()) > 0:
            revision = self.changes.revision
            standing = await self._standing(tenant)
            if standing is None or standing.desired.wanted is not Wanted.RUNNING:
                return
            seen = standing.recorded
            if seen.phase is Phase.ASLEEP:
                return
            current = seen.observed_generation >= standing.desired.generation
            if seen.phase is Phase.FAILED or (current and seen.phase is Phase.READY):
                return
            await self.changes.until(lambda: self.changes.revision > revision, left)  # noqa: B023
