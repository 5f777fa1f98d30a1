"""The operator's options of sign-in through a provider: read, checked, and told in a sentence."""

from __future__ import annotations

import pytest

from polyolo.cli import main
from polyolo.cli.signin import SECRET, SignIn
from polyolo.control.provider import IdentityProvider

ISSUER = "https://login.example.com"


def test_the_secret_comes_from_a_file_or_from_the_environment(monkeypatch, tmp_path):
    """A file wins; without either the client has none."""
    monkeypatch.delenv(SECRET, raising=False)
    file = tmp_path / "secret"
    file.write_text(" from a file\n")
    named = {"oidc_issuer": ISSUER, "oidc_client_id": "polyolo", "oidc_name": "Example ID"}
    made = SignIn(**named, oidc_client_secret_file=file, oidc_domain=("example.com",)).provider()
    assert made == IdentityProvider(
        issuer=ISSUER,
        client_id="polyolo",
        client_secret="from a file",
        name="Example ID",
        domains=("example.com",),
    )
    assert SignIn(**named).provider().client_secret == ""
    monkeypatch.setenv(SECRET, "from the environment")
    assert SignIn(**named).provider().client_secret == "from the environment"
    assert SignIn().provider() is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--oidc-client-id", "x"], "needs --oidc-issuer"),
        (["--oidc-issuer", "http://login.example.com", "--oidc-client-id", "x"], "https"),
        (["--oidc-issuer", ISSUER], "client id"),
        (
            [
                *("--oidc-issuer", ISSUER, "--oidc-client-id", "x"),
                *("--oidc-client-secret-file", "/no/such/file"),
            ],
            "/no/such/file",
        ),
    ],
)
@pytest.mark.parametrize("command", ["up", "control"])
def test_what_cannot_be_is_told_before_anything_starts(
    capsys, tmp_path, monkeypatch, command, options, says
):
    """One sentence on stderr, status 1; no home is made."""
    for variable in ("POLYOLO_OIDC_ISSUER", "POLYOLO_OIDC_CLIENT_ID", SECRET):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    more = [] if command == "up" else ["--standard-model", "x.onnx"]
    status = main([command, "--home", str(home), *more, *options])
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (1, 1), said
    assert says in said
    assert not home.exists()
