"""Where runtimes live: one protocol, for a process, a container or a pod.

A driver is told the desired state of one tenant's runtime and reports what it observes. It
keeps no state of its own: what it knows it reads back from where the runtimes live. The
reconciler decides; a driver only does, again and again if need be.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from polyolo.types import RuntimeSpec, RuntimeStatus

ANSWER_S = 1.5
"""Seconds that a runtime may take to tell its status. Its event loop does nothing heavy, so this
is long even on a machine under full load; asked twice, and found by a look every 5 s, a hung
runtime is known as such within 8 s."""
SETTLE_MS = 300
"""Milliseconds that a runtime may take to put a spec in force before it answers: longer than a
small model takes, so that whoever asked for it need not ask again."""


class Driver(Protocol):
    """What the reconciler needs from a place where runtimes live.

    Every method may be called from any thread, repeatedly, in any order, after a crash at any
    point before, and returns within a few seconds. Failures of the place itself (disk full, no
    such command, API server out of reach) are OSErrors.
    """

    def observe(self, tenants: Collection[str] | None = None) -> dict[str, RuntimeStatus]:
        """Return the state of the runtimes of `tenants`, or of all that there are.

        A tenant of which there is no trace is not in the answer. ABSENT: nothing runs, remains
        are there. ASLEEP: applied with no copies. STARTING: runs, not yet able to answer. READY:
        a copy answers; `endpoints` names all that do, in an order that stays; the generation and
        the models are those of the one that is behind the others; `reason` says why another copy
        has failed. FAILED: ended without being asked to, or runs but does not answer; `reason`
        says which. STOPPING: asked to end.
        """
        ...

    def apply(self, spec: RuntimeSpec) -> None:
        """Have `spec.replicas` copies of the tenant's runtime run with `spec`.

        Starts what is missing, tells those that run, replaces those that FAILED, and begins to
        end the ones too many, or goes on with it: of those that answer, the last in `endpoints`.
        A copy of another release, or OUTDATED, is too many once another one answers in its place.
        Beside a copy that is STOPPING another one may start. Each version's `uri` is the absolute
        path of its file. Need not wait until a copy is ready; `observe` tells when it is, and
        which generation is in force.
        """
        ...

    def remove(self, tenant: str) -> None:
        """Begin to end the tenant's runtime, or go on with it: drain, then kill, then clean up.

        Returns at once. Call again until `observe` no longer shows the tenant.
        """
        ...

    def wait(self, timeout: float) -> set[str]:
        """Wait up to `timeout` seconds for runtimes to change on their own, and return whose.

        A hint, not a promise: the reconciler looks at every runtime now and then anyway.
        """
        ...
