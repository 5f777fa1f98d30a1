"""Runs every suite of the control plane on both databases."""

from __future__ import annotations

import os
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


@pytest.fixture(autouse=True)
def _on_its_database(request: pytest.FixtureRequest) -> None:
    """Set the database up before all else, also for tests and fixtures that do not name it."""
    if "database" in getattr(getattr(request.node, "callspec", None), "params", {}):
        kind = request.getfixturevalue("database")
        assert (kind == "postgresql") == (postgres.VARIABLE in os.environ)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """Run one server for the whole session; each home gets a database of its own in it."""
    with postgres.server() as server:
        yield server.directory


@pytest.fixture
def database(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """Have `control_plane.settings` choose this database, in child processes too."""
    kind: str = request.param
    monkeypatch.delenv(postgres.VARIABLE, raising=False)
    if kind != "postgresql":
        yield kind
        return
    server: Path = request.getfixturevalue("postgres_server")
    monkeypatch.setenv(postgres.VARIABLE, str(server))
    yield kind
    postgres.drop(server, below=tmp_path)
