"""Runs every suite of the control plane on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import postgres

_NO_DATABASE = {"test_control_processes"}  # of the driver alone


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every test of the control plane, or of the audit log, the two databases."""
    module = metafunc.module.__name__.rpartition(".")[2]
    if (
        module.startswith(("test_control_", "test_audit", "test_accounts", "test_oauth"))
        and module not in _NO_DATABASE
    ):
        metafunc.fixturenames.append("database")
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """Run one server for the whole session; each home gets a database of its own in it."""
    with postgres.server() as directory:
        yield directory


@pytest.fixture
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have `control_plane.settings` choose this database, in child processes too."""
    kind: str = request.param
    monkeypatch.delenv(postgres.VARIABLE, raising=False)
    if kind == "postgresql":
        monkeypatch.setenv(postgres.VARIABLE, str(request.getfixturevalue("postgres_server")))
    return kind
