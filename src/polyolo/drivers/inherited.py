"""A child that this process has from what it was before: the program changed, the process did not.

Executing another program keeps a process's children, but not what it knew of them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading


class Inherited:
    """One child, as subprocess.Popen would show it. Any thread may use it."""

    def __init__(self, pid: int) -> None:
        """Take over a child. pid: of one that nobody else waits for."""
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return how it ended, as subprocess counts it; None while it runs."""
        with self._lock:
            if self.returncode is None:
                try:
                    ended, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has seen its end
                    self.returncode = 0
                else:
                    self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait so many seconds for its end and return it. Raises subprocess.TimeoutExpired."""
        if (code := self.poll()) is not None:
            return code
        descriptor = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(timeout * 1000)
        finally:
            os.close(descriptor)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless its end has been seen: then its pid may be another's."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)
