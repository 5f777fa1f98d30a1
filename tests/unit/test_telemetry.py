"""What a process tells: JSON lines with named fields, request ids that are fit to be logged."""

import json
import subprocess
import sys

import pytest

from polyolo import telemetry

TELL = """
from polyolo import telemetry
telemetry.configure_logging("serving")
log = telemetry.logger("here")
log.info("seen", tenant="t_1", count=2)
try:
    secret_local = "pixels"
    raise ValueError("bad")
except ValueError:
    log.exception("went wrong", odd=object)
"""


def test_lines_are_json_with_their_fields_and_tracebacks_without_locals():
    """Each line is one object that names process and module; no local variable is in it."""
    done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "process": "serving",
        "module": "here",
        "event": "seen",
        "tenant": "t_1",
        "count": 2,
    }
    assert (second["level"], second["odd"]) == ("error", "<class 'object'>")
    assert "ValueError: bad" in second["exception"]
    assert "pixels" not in done.stderr.replace('secret_local = "pixels"', "")


def test_a_runtime_does_not_load_what_only_commands_need():
    """Neither rich nor a client library is imported with the log and the web parts."""
    only = {"rich", "httpx", "cyclopts"}
    code = f"import sys, polyolo.web; print(sorted({only} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("offered", [None, b"", b"a b", b"x" * 65, b"line\nbreak", b"\xff"])
def test_an_unfit_request_id_is_replaced(offered):
    """What could forge a log line or fill it is not taken over."""
    assert telemetry.request_id(offered) != (offered or b"").decode("latin-1")
    assert len(telemetry.request_id(offered)) == 32


def test_a_fit_request_id_is_kept():
    """A client's own id comes back to it."""
    assert telemetry.request_id(b"order-7.a_B") == "order-7.a_B"
