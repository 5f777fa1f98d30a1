"""`polyolo tenants export`, `erase` and `verify`: what they send, write and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyolo.cli import main
from polyolo.control.audit import Signer, new_private_key
from polyolo.errors import NotReadyError, PolyoloError
from tests.unit.recorded_service import (
    TENANT,
    Says,
    Service,
    awaiting,
    blocking,
    problem,
    running_service,
)

EXPORT, ERASURE = "/api/v1/tenants/acme/export", "/api/v1/tenants/acme/erasure"
SIGNER = Signer(new_private_key())


def certificate() -> dict[str, Any]:
    return SIGNER.attest(
        {
            "format": "polyolo.erasure.1",
            "platform": "https://yolo.example",
            "tenant": "t_0123456789",
            "requested_at": "2026-01-31T08:00:00Z",
            "requested_by": "operator",
            "finished_at": "2026-01-31T08:00:01Z",
            "removed": {"users": 2},
            "files": ["ab" * 32],
            "kept": [{"what": "sums", "why": "tax", "until": "2036-12-31"}],
            "usage": {},
        }
    )


def erasure(*, done: bool) -> dict[str, Any]:
    return {
        "id": "er_" + "s" * 43,
        "tenant": "t_0123456789",
        "state": "done" if done else "running",
        "requested_at": 1.7e9,
        "requested_by": "operator",
        "certificate": certificate() if done else None,
    }


@pytest.fixture
def service(monkeypatch, tmp_path: Path) -> Iterator[Service]:
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_operator")
        monkeypatch.chdir(tmp_path)
        yield service


def test_an_export_is_written(service: Service, tmp_path: Path, capsys):
    """Into the file that is asked for, or one named after the tenant; as the operator."""
    service.on("GET", EXPORT, Says(body=b"zip" * 100_000))
    assert main(["tenants", "export", "acme"]) == 0
    assert (tmp_path / "acme-export.zip").read_bytes() == b"zip" * 100_000
    assert service.seen[-1].headers["authorization"] == "Bearer po_operator"
    assert main(["tenants", "export", "acme", "--output", "other.zip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2]) == {"written": "other.zip"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["acme-export.zip", "other.zip"]


@pytest.mark.parametrize("call", [blocking, awaiting])
def test_an_export_is_there_whole_or_not_at_all(service: Service, tmp_path: Path, call):
    """A refusal and a transfer that breaks off leave what was there before."""
    target = tmp_path / "acme.zip"
    target.write_bytes(b"before")
    service.on("GET", EXPORT, problem(403, "forbidden", "no"))
    with pytest.raises(PolyoloError, match="no"):
        call(service.url, "export_tenant", target, tenant="acme")
    service.on("GET", EXPORT, Says(body=b"half", headers={"content-length": "1000"}))
    with pytest.raises(NotReadyError):
        call(service.url, "export_tenant", target, tenant="acme", retries=0, timeout=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["acme.zip"]
    assert target.read_bytes() == b"before"
    service.on("GET", EXPORT, Says(body=b"whole"))
    assert call(service.url, "export_tenant", target, tenant="acme") == target
    assert target.read_bytes() == b"whole"


def test_erasing_waits_for_the_certificate_and_writes_it(service: Service, tmp_path: Path, capsys):
    """Confirmed by name; what was kept and until when is said; the file verifies."""
    service.on("GET", "/api/v1/tenants/acme", Says(body=TENANT))
    service.on("POST", ERASURE, Says(202, erasure(done=False)))
    path = f"/api/v1/erasures/{erasure(done=True)['id']}"
    service.on("GET", path, Says(body=erasure(done=False)), Says(body=erasure(done=True)))
    assert main(["tenants", "erase", "acme", "--yes"]) == 0
    assert [seen.json for seen in service.seen if seen.method == "POST"] == [{"confirm": "acme"}]
    said = capsys.readouterr().out
    assert "kept until 2036-12-31" in said
    assert main(["tenants", "verify", "acme-erasure.json"]) == 0
    assert SIGNER.public in capsys.readouterr().out
    assert main(["tenants", "verify", "acme-erasure.json", "--public-key", SIGNER.public]) == 0


def test_nothing_is_erased_without_a_word(service: Service, capsys):
    """No terminal to ask at, and no --yes: refused before anything is sent."""
    assert main(["tenants", "erase", "acme"]) == 1
    assert "--yes" in capsys.readouterr().err
    assert service.seen == []


def test_one_that_was_deleted_is_erased_by_its_id(service: Service, capsys):
    """There is no name left to confirm with."""
    service.on("POST", "/api/v1/tenants/t_0123456789/erasure", Says(202, erasure(done=True)))
    assert main(["tenants", "erase", "t_0123456789", "--yes", "--json"]) == 0
    assert service.seen[-1].json == {"confirm": "t_0123456789"}
    assert json.loads(capsys.readouterr().out)["tenant"] == "t_0123456789"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"files": []}, "not as it was signed"),
        ({"public_key": Signer(new_private_key()).public}, "not as it was signed"),
        ({"public_key": "nonsense"}, "not as it was signed"),
        ({"signature": None}, "not as it was signed"),
    ],
)
def test_a_changed_certificate_is_refused(tmp_path: Path, capsys, change, says):
    """Whatever was changed, the exit status is 1 and the reason is told."""
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(certificate() | change))
    assert main(["tenants", "verify", str(file)]) == 1
    assert says in capsys.readouterr().out


def test_another_key_and_another_kind_of_file_are_refused(tmp_path: Path, capsys):
    """Signed well, but not by who was expected; and what is no certificate at all."""
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(certificate()))
    assert main(["tenants", "verify", str(file), "--public-key", "other", "--json"]) == 1
    assert "another key" in json.loads(capsys.readouterr().out)["problems"][0]
    for content in (b"", b"{}", b"[1]", b"\xff\xfe", b"PK\x05\x06" + b"\0" * 18):
        file.write_bytes(content)
        assert main(["tenants", "verify", str(file)]) == 1
        assert "neither an export nor a certificate" in capsys.readouterr().err
