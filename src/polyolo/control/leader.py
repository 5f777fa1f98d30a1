"""One of several control planes on a database reconciles; this decides which, and follows the rest.

Who reconciles holds the lease, a row, and counts its beat up. Whoever has seen the beat stand
still for long enough takes the lease with a higher epoch. Everybody measures with a clock of its
own that no administrator sets, so wall clocks may jump. The holder stops acting well before
others may take over, and whatever it still writes carries its epoch and is refused after that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from polyolo import telemetry
from polyolo.control.changes import Changes
from polyolo.control.service import changed, lease
from polyolo.control.service.lease import Lease
from polyolo.control.service.ledger import Ledger

BEAT_S = 1.5
"""Between two beats: a small write each."""
SURE_S = 4.0
"""The holder acts for this long after its last beat was begun: a beat may take 2.5 s."""
EXPIRY_S = 8.0
"""A lease whose beat stood still this long may be taken; 4 s later than the holder stopped, for
the step that it had in hand."""
LOOK_S = 0.2
"""Between two looks for other control planes' changes; a revoked key has a second to get round."""


class Worker(Protocol):
    """What works only where the lease is held. Any thread may call it."""

    def start(self) -> None:
        """Take up what is waiting, and begin to work."""

    def stop(self) -> None:
        """Finish the steps in hand and end."""

    def alive(self) -> bool:
        """Say whether every thread is at work."""

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these tenants: something was changed, here or by another control plane.

        urgent: somebody waits for their runtimes.
        """


Begin = Callable[[Ledger, Callable[[], bool]], tuple[Sequence[Worker], Callable[[], None]]]
"""Starts to reconcile with a ledger of the epoch, while the function says so; gives what was
started, and what ends it with all its runtimes."""


def boottime() -> float:
    """Return seconds that no change of the date moves and that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def identity(lock: Path) -> str:
    """Return who holds the lock file of a home: this file, of this kernel, since it booted.

    The kernel lets one process at a time hold it, so a lease of the same name is its dead
    predecessor's, and may be taken at once.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    where = lock.stat()
    booted = boot.read_text().strip() if boot.exists() else os.uname().nodename
    return f"{booted}:{where.st_dev}:{where.st_ino}"


class Leader:
    """A thread that holds the lease or waits for it. `start` and `stop` from one thread."""

    def __init__(
        self,
        ledger: Ledger,
        changes: Changes,
        name: str,
        begin: Begin,
        *,
        clock: Callable[[], float] = boottime,
    ) -> None:
        """Prepare. name: unique to this process (see identity). clock: seconds."""
        self._ledger = ledger
        self._changes = changes
        self._name = name
        self._begin = begin
        self._clock = clock
        self._held: Lease | None = None
        self._sure_until = 0.0
        self._seen: tuple[Lease, float] | None = None
        self._work: tuple[Sequence[Worker], Callable[[], None]] | None = None
        self._retiring: threading.Thread | None = None
        self._revision = ledger.revision()  # a worker that begins looks at everybody by itself
        self._last = changed.last(ledger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self._log = telemetry.logger("leader")

    def start(self) -> None:
        """Take the lease if it is free, and begin to look after it. Raises what the driver does."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """End the work, its runtimes drained; another control plane may go on at once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._retire(give_up=True)
        if self._retiring is not None:
            self._retiring.join()

    def leave(self) -> None:
        """End the work, but leave its runtimes running: this process is to be another program.

        First what takes long; until the end of that, runtimes are looked after.
        """
        workers = self._work[0] if self._work is not None else ()
        for worker in reversed(workers):
            worker.stop()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        # The lease is kept: this process takes it again under the same name.
        self._held, self._work, self._sure_until = None, None, 0.0

    def look_at(self, tenants: Iterable[str], *, urgent: bool = False) -> None:
        """Have these tenants looked at, where it is this control plane that does that."""
        if (work := self._work) is not None:
            for worker in work[0]:
                worker.look_at(tenants, urgent=urgent)

    def leads(self) -> bool:
        """Say whether this control plane may act on runtimes now. Any thread."""
        return self._clock() < self._sure_until

    def alive(self) -> bool:
        """Say whether every thread is at work."""
        work = self._work
        return self._thread.is_alive() and (work is None or all(one.alive() for one in work[0]))

    def _run(self) -> None:
        well = True
        while not self._stopping.wait(LOOK_S):
            try:
                self._follow()
                self._turn()
                well = True
            except Exception as error:  # noqa: BLE001  # the database may come back
                if well:
                    self._log.warning("cannot look after the lease", error=str(error))
                well = False

    def _follow(self) -> None:
        """Tell of the changes that other control planes made."""
        revision = self._ledger.revision()
        if revision == self._revision:
            return
        self._last, tenants = changed.since(self._ledger, self._last, self._revision)
        self._revision = revision  # read before; what came in between is looked at once more
        self._changes.publish(revision)
        if self._work is not None:
            for worker in self._work[0]:
                worker.look_at(tenants)

    def _turn(self) -> None:
        now = self._clock()
        if self._held is None:
            if self._retiring is None or not self._retiring.is_alive():
                self._seek(now)
        elif now >= self._sure_until - SURE_S + BEAT_S:
            self._beat(now)

    def _seek(self, now: float) -> None:
        found = lease.read(self._ledger)
        if self._seen is None or self._seen[0] != found:
            self._seen = (found, now)
        if found.holder not in ("", self._name) and now - self._seen[1] < EXPIRY_S:
            return
        held = lease.take(self._ledger, found, self._name)
        if held is None:
            return  # somebody was faster
        self._log.info("reconciling", epoch=held.epoch)
        self._held = held
        self._sure_until = now + SURE_S
        guarded = self._ledger.guarded(lambda connection: lease.fence(connection, held.epoch))
        try:
            self._work = self._begin(guarded, self.leads)
        except BaseException:
            self._held, self._sure_until = None, 0.0
            lease.give_up(self._ledger, held)
            raise

    def _beat(self, now: float) -> None:
        assert self._held is not None
        fresh = lease.beat(self._ledger, self._held)
        if fresh is None:
            found = lease.read(self._ledger)
            if (found.epoch, found.holder) == (self._held.epoch, self._name):
                self._held = found  # an answer to an earlier beat was lost on the way
                return
            self._log.warning("another control plane reconciles now", epoch=found.epoch)
            self._retire(give_up=False)
            return
        self._held = fresh
        self._sure_until = now + SURE_S

    def _retire(self, *, give_up: bool) -> None:
        held, work = self._held, self._work
        self._held, self._work, self._sure_until = None, None, 0.0
        if work is None:
            return
        workers, end = work
        for worker in workers:
            worker.stop()
        if give_up and held is not None:
            try:
                lease.give_up(self._ledger, held)
            except Exception as error:  # noqa: BLE001  # then it runs out by itself
                self._log.warning("the lease is left to run out", error=str(error))
        # Runtimes may take long to drain; meanwhile others' changes are followed as ever.
        self._retiring = threading.Thread(target=end, name="retiring", daemon=True)
        self._retiring.start()
