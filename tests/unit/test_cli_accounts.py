"""The commands on people: what is asked, what is printed, and that no password is an argument."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from polyolo.cli import main
from tests.unit.recorded_service import (
    KEY,
    TENANT,
    Says,
    Service,
    awaiting,
    blocking,
    running_service,
)

USER = {"id": "u_0123456789", "email": "ann@example.com", "role": "owner", "created_at": 1.7e9}
INVITATION = {
    "id": "abcdefghijkl",
    "name": "Bob",
    "role": "viewer",
    "created_at": 1.7e9,
    "expires_at": 1.8e9,
    "used_at": None,
    "token": "pi_abcdefghijkl_" + "s" * 43,
}
TENANTS = "/api/v1/tenants"


@pytest.fixture
def service(monkeypatch, tmp_path) -> Iterator[Service]:
    """Give a service that the environment names, with the operator's key."""
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.delenv("POLYOLO_API_KEY", raising=False)
        monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_operator")
        yield service


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit status, stdout, stderr."""
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_registered(capsys, service, monkeypatch):
    """The password comes from the environment, the key is printed; no credential is sent."""
    monkeypatch.setenv("POLYOLO_PASSWORD", "a long enough secret")
    made = {"tenant": TENANT, "user": USER, "api_key": KEY}
    service.on("POST", "/api/v1/register", Says(201, made))
    status, out, _ = run(capsys, "register", "Acme Inc.", "--email", "ann@example.com")
    assert status == 0
    assert f"export POLYOLO_API_KEY={KEY['key']}" in out
    assert "a long enough secret" not in out
    assert service.seen[0].json == {
        "email": "ann@example.com",
        "password": "a long enough secret",
        "organization": "Acme Inc.",
    }
    assert "authorization" not in service.seen[0].headers


def test_without_a_terminal_a_password_is_asked_of_the_environment(service):
    """One sentence with what to set, status 1, nothing sent."""
    done = subprocess.run(
        [sys.executable, "-m", "polyolo", "register", "Acme", "--email", "ann@example.com"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "POLYOLO_PASSWORD" in done.stderr
    assert service.seen == []


def test_users_are_listed_changed_removed(capsys, service):
    """As the operator, on the tenant that is named."""
    service.on("GET", f"{TENANTS}/acme/users", Says(body={"users": [USER]}))
    service.on("PATCH", f"{TENANTS}/acme/users/u_1", Says(body=USER | {"role": "viewer"}))
    service.on("DELETE", f"{TENANTS}/acme/users/u_1", Says(204))
    assert "ann@example.com" in run(capsys, "users", "list", "acme")[1]
    assert "is now viewer" in run(capsys, "users", "role", "acme", "u_1", "viewer")[1]
    assert run(capsys, "users", "remove", "acme", "u_1")[0] == 0
    assert service.seen[1].json == {"role": "viewer"}
    assert {seen.headers["authorization"] for seen in service.seen} == {"Bearer po_operator"}


def test_invitations_into_a_tenant_and_to_register(capsys, service):
    """With --tenant into it, without it to register; the token is printed once."""
    for path in ("/api/v1/invitations", f"{TENANTS}/acme/invitations"):
        service.on("POST", path, Says(201, INVITATION))
        service.on("GET", path, Says(body={"invitations": [INVITATION | {"token": None}]}))
        service.on("DELETE", f"{path}/abcdefghijkl", Says(204))
    for tenant in ([], ["--tenant", "acme"]):
        role = ["--role", "viewer"] if tenant else []
        status, out, _ = run(capsys, "invitations", "create", "--expires", "3600", *role, *tenant)
        assert (status, INVITATION["token"] in out) == (0, True)
        assert service.seen[-1].json["expires_in"] == "3600"
        assert "Bob" in run(capsys, "invitations", "list", *tenant)[1]
        assert run(capsys, "invitations", "withdraw", "abcdefghijkl", *tenant)[0] == 0


@pytest.mark.parametrize("ask", [blocking, awaiting])
def test_the_sdk_accepts_an_invitation(service, ask):
    """Both clients send token, address and password, and read the user."""
    service.on("POST", "/api/v1/invitations/accept", Says(201, USER))
    user = ask(service.url, "accept_invitation", "pi_x", "ann@example.com", "secret")
    assert user.email == "ann@example.com"
    sent = {"token": "pi_x", "email": "ann@example.com", "password": "secret"}
    assert service.seen[0].json == sent
