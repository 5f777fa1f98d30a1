"""A child known by its pid alone: seen to run, to end, and never signalled after that."""

import os
import signal
import subprocess

import pytest

from polyolo.drivers.inherited import Inherited


def spawned(*words: str) -> Inherited:
    return Inherited(os.posix_spawn("/bin/sh", ["sh", "-c", *words], os.environ))


def test_its_end_is_seen_as_subprocess_would():
    """None while it runs, then the status or the signal, again and again."""
    child = spawned("sleep 60")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    child.kill()
    assert child.wait(5) == -signal.SIGKILL
    assert (child.poll(), child.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
    child.terminate()  # its pid may be another's by now: nobody is signalled
    ended = spawned("exit 3")
    assert ended.wait(5) == 3


def test_one_that_somebody_else_has_waited_for_is_over():
    """Its status is lost; it does not count as running for ever."""
    child = spawned("exit 3")
    os.waitpid(child.pid, 0)
    assert child.poll() == 0
