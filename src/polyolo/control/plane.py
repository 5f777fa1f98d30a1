"""What the routes of the control API work with, and how an answer waits for its own effect."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from polyolo.control.admission import Admission
from polyolo.control.artifacts import ArtifactStore
from polyolo.control.changes import Changes
from polyolo.control.decide import Wanted
from polyolo.control.guesses import Guesses
from polyolo.control.passwords import Passwords
from polyolo.control.service import runtimes
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.control.throttle import Throttle
from polyolo.types import Phase

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
    store: ArtifactStore
    admission: Admission
    changes: Changes
    token_signer: Signer
    vault: Vault
    passwords: Passwords
    guesses: Guesses
    registrations: Throttle
    """By the address that they come from."""

    async def told(self) -> None:
        """Wait until the gateways know of what has been changed so far."""
        await self.changes.at_gateways(self.changes.revision, AT_GATEWAYS_S)

    async def in_force(self, tenant: str) -> None:
        """Wait until the tenant's runtime serves what it should, so that its owner sees it so.

        Not for a runtime that is failing or meant to be down, and not for ever.
        """
        await self._converged(tenant)
        await self.told()

    async def _converged(self, tenant: str) -> None:
        clock = self.ledger.clock
        deadline = clock() + IN_FORCE_S
        while (left := deadline - clock()) > 0:
            revision = self.changes.revision
            standing = await run_in_threadpool(runtimes.standing, self.ledger, tenant)
            if standing is None or standing.desired.wanted is not Wanted.RUNNING:
                return
            seen = standing.recorded
            current = seen.observed_generation >= standing.desired.generation
            if seen.phase is Phase.FAILED or (current and seen.phase is Phase.READY):
                return
            await self.changes.until(lambda: self.changes.revision > revision, left)  # noqa: B023
