"""Keeps where the audit log ended in a file outside the database.

Whoever puts back an older copy of the whole database, signatures and all, is found out by it.
Copies of the file elsewhere find out who can write to the home too.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from polyolo import telemetry
from polyolo.control.audit import HEAD, WHOLE, Mark
from polyolo.control.service import audit, erasures
from polyolo.control.service.ledger import Ledger
from polyolo.errors import PolyoloError

FILE = "audit.witness"
WRITE_S = 1.0
"""Between two looks; so many seconds of the log's end are not witnessed yet."""
PRUNE_S = 3600.0
"""Between two prunings."""
_DAY_S = 86400.0


class Keeper:
    """A thread that witnesses the log's end, and deletes what is beyond its retention."""

    def __init__(self, ledger: Ledger, home: Path, retention_days: int) -> None:
        """Start the thread."""
        self._ledger = ledger
        self._home = home
        self._retention_s = retention_days * _DAY_S
        self._stopping = threading.Event()
        self._log = telemetry.logger("audit")
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="audit-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Witness the end once more, and end the thread."""
        self._stopping.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        looks = 0
        while not self._stopping.wait(WRITE_S):
            self._look()
            if looks % int(PRUNE_S / WRITE_S) == 0:
                self._prune()
            looks += 1

    def _look(self) -> None:
        try:
            head = audit.head(self._ledger)
            if head is not None and head.number > self._written:
                write(self._home, head)
                self._written = head.number
        except Exception as error:  # noqa: BLE001  # the database or the disk may come back
            self._log.warning("the audit log's end is not witnessed", error=str(error))

    def _prune(self) -> None:
        try:
            audit.prune(self._ledger, self._ledger.clock() - self._retention_s)
            erasures.prune(self._ledger)
        except PolyoloError as error:
            self._log.error("the audit log is not pruned", reason=error.detail)
        except Exception as error:  # noqa: BLE001  # the database may come back
            self._log.warning("the audit log is not pruned", error=str(error))


def write(home: Path, head: Mark) -> None:
    """Write where the whole log ends, whole or not at all."""
    fresh = home / f".{FILE}"
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps({"number": head.number, "hash": head.hash}))
    fresh.replace(home / FILE)


def read(home: Path) -> list[Mark]:
    """Return what was witnessed; nothing before the first second of a platform's life."""
    file = home / FILE
    if not file.exists():
        return []
    said = json.loads(file.read_text())
    return [Mark(chain=WHOLE, kind=HEAD, number=said["number"], hash=said["hash"])]
