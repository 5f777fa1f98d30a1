"""Where runtimes live: one protocol, for a process, a container or a pod.

A driver is told the desired state of one tenant's runtime and reports what it observes. It
keeps no state of its own: what it knows it reads back from where the runtimes live. The
reconciler decides; a driver only does, again and again if need be.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from polyolo.types import RuntimeSpec, RuntimeStatus


class Driver(Protocol):
    """What the reconciler needs from a place where runtimes live.

    Every method may be called from any thread, repeatedly, in any order, after a crash at any
    point before, and returns within a few seconds. Failures of the place itself (disk full, no
    such command, API server out of reach) are OSErrors.
    """

    def observe(self, tenants: Collection[str] | None = None) -> dict[str, RuntimeStatus]:
        """Return the state of the runtimes of `tenants`, or of all that there are.

        A tenant of which there is no trace is not in the answer. ABSENT: nothing runs, remains
        are there. STARTING: runs, not yet able to answer. READY: answers. FAILED: ended without
        being asked to, or runs but does not answer; `reason` says which. STOPPING: asked to end.
        """
        ...

    def apply(self, spec: RuntimeSpec) -> None:
        """Have the tenant's runtime run with `spec`: start it, tell it, or replace it if FAILED.

        Each version's `uri` is the absolute path of its file. Returns before the runtime is
        ready; `observe` tells when it is, and which generation is in force. Does nothing while
        the runtime is STOPPING.
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
