"""`polyolo audit` and `keys rotate-master`: whom they ask, what they print, how they end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyolo.cli import main
from polyolo.control import secrets
from polyolo.control.home import held
from tests.unit.recorded_service import Says, Service, running_service

ENTRY = {
    "seq": 3, "at": 1.7e9, "kind": "call", "actor": "key:abc", "action": "models:read",
    "tenant": "t_0123456789", "resource": "GET /api/v1/tenants/me/models", "detail": "",
    "source": "192.0.2.7", "status": 200, "number": 3, "digest": "d", "chain": "c", "whole": "",
    "signature": None, "salt": "a", "redacted": None,
}  # fmt: skip
MINE, ALL = "/api/v1/tenants/me/audit", "/api/v1/audit"


@pytest.fixture
def service(monkeypatch, tmp_path) -> Iterator[Service]:
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_API_KEY", "pk_tenant")
        monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_operator")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        yield service


def run(capsysbinary, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    said = capsysbinary.readouterr()
    return status, said.out.decode(), said.err.decode()


def test_the_newest_entries_for_people_and_programs(service, capsysbinary):
    """A table with who, from where, what and the outcome; JSON as the service said it."""
    service.on("GET", MINE, Says(body={"entries": [ENTRY]}))
    status, out, _ = run(capsysbinary, "audit", "--limit", "5")
    assert status == 0
    assert all(word in out for word in ("key:abc", "192.0.2.7", "models:read", "200"))
    assert dict(service.seen[-1].query) == {"after": "0", "limit": "5", "newest": "true"}
    status, out, _ = run(capsysbinary, "audit", "--json")
    assert json.loads(out) == [ENTRY]


def test_an_export_is_lines(service, capsysbinary):
    """JSON Lines and CSV, as the operator too."""
    service.on("GET", ALL, Says(body={"entries": [ENTRY]}))
    _, out, _ = run(capsysbinary, "audit", "--all", "--export", "jsonl")
    assert [json.loads(line) for line in out.splitlines()] == [ENTRY]
    assert service.seen[-1].headers["authorization"] == "Bearer po_operator"
    _, out, _ = run(capsysbinary, "audit", "--all", "--export", "csv")
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert (row["seq"], row["actor"], row["signature"]) == ("3", "key:abc", "")


def test_verification_fails_the_command_when_something_was_changed(service, capsysbinary):
    """Exit status 0 and the signing key, or 1 and which entry."""
    good = {"entries": 7, "problems": [], "public_key": "cHVibGlj"}
    service.on("GET", f"{MINE}/verify", Says(body=good))
    status, out, _ = run(capsysbinary, "audit", "--verify")
    assert status == 0
    assert "7 entries" in out
    bad = good | {"problems": [{"seq": 5, "problem": "the entry was edited"}]}
    service.on("GET", f"{MINE}/verify", Says(body=bad))
    for more in ((), ("--json",)):
        status, out, err = run(capsysbinary, "audit", "--verify", *more)
        assert status == 1
        assert "5" in out
        assert "the entry was edited" in out
        assert "tampered with" in err


def test_rotating_the_master_key(tmp_path: Path, capsysbinary):
    """Another key in the home; refused under a running platform and where no home is."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    before = secrets.master(home, {}).id
    status, out, _ = run(capsysbinary, "keys", "rotate-master", "--home", str(home), "--json")
    assert (status, json.loads(out)) == (0, {"rewrapped": 0})
    assert secrets.master(home, {}).id != before
    with held(home):
        status, _, err = run(capsysbinary, "keys", "rotate-master", "--home", str(home))
        assert (status, "another polyolo runs" in err) == (1, True)
    status, _, err = run(capsysbinary, "keys", "rotate-master", "--home", str(tmp_path / "none"))
    assert (status, "no home" in err) == (1, True)
