"""Takes a model file in and deletes it again, is killed at its n-th step, and is mended after that.

`python killed_uploads.py HOME INSPECT FIRST EACH`: for n from FIRST in steps of EACH, until the
work is done before it is killed. Prints a line of JSON for each n: where it was killed, and what
is not as it should be after a restart. Steps are whatever reaches the disk: files made, linked,
renamed and deleted, processes started, transactions committed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.admission import Admission
from polyolo.control.artifacts import Artifacts
from polyolo.control.conversion import Converter
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.objects import DirectoryStore
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import artifacts, audit, models, tenants, uploads
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.storages import Storages
from polyolo.control.service.vault import Vault
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local
from polyolo.types import Plan, Principal

WHO = Principal(kind="operator", id="operator")
PLAN = Plan(name="default")
TENANT = "t_0123456789"
CONTENT = b"model " + b"x" * 300_000
PARTS = (0, 100_000, 200_000, len(CONTENT))
ISOLATION = probe()
STEPS = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "subprocess.Popen", "open"}


class Platform:
    """What takes files in, on a home."""

    def __init__(self, home: Path, inspect: str) -> None:
        self.engine = db.open_engine(f"sqlite:///{home / 'polyolo.db'}")
        migrate(self.engine)
        vault = Vault(LocalMaster(bytes(32)))
        self.ledger = Ledger(self.engine, audit.opened(self.engine, vault))
        self.root = home / "artifacts"
        self.store = Artifacts(
            DirectoryStore(self.root), lambda tenant: artifacts.key_of(self.ledger, vault, tenant)
        )
        look = Local(command=(sys.executable, inspect), isolation=ISOLATION)
        storages = Storages(self.ledger, vault)
        self.admission = Admission(self.ledger, self.store, storages, look, Converter(), (PLAN,))

    def send(self, upload: str) -> None:
        """Send what is missing of CONTENT."""
        at = self.store.received(TENANT, upload)
        for start, end in itertools.pairwise(PARTS):
            if start >= at:
                assert self.store.add(TENANT, upload, start, CONTENT[start:end])
        uploads.complete(self.ledger, TENANT, upload, len(CONTENT))

    def settle(self) -> None:
        """Do what is to be done."""
        while self.admission._step(TENANT) is not None:
            pass


def work(platform: Platform) -> None:
    """Take a file in, and another one that is refused; delete the model."""
    for content in (CONTENT, b"no model"):
        made = uploads.begin(platform.ledger, WHO, TENANT, "city", PLAN, size=len(content))
        if content is CONTENT:
            platform.send(made.id)
        else:
            platform.store.add(TENANT, made.id, 0, content)
            uploads.complete(platform.ledger, TENANT, made.id, len(content))
        platform.settle()
    models.delete(platform.ledger, WHO, TENANT, "city")
    platform.settle()


def mended(platform: Platform) -> list[str]:
    """Start again, go on where the work stopped, and return what is wrong."""
    wrong = []
    platform.admission.sweep()
    platform.settle()
    platform.admission.sweep()
    named = artifacts.every(platform.ledger)
    for model in models.every(platform.ledger, TENANT):
        for version in model.versions:
            if b"".join(platform.store.read(TENANT, version.digest)) != CONTENT:
                wrong.append(f"version {version.version} is another file")
    begun = uploads.open_ones(platform.ledger)
    for name, tenant, what, _ in platform.store.everything():
        if (tenant, what) not in named and what not in begun:
            wrong.append(f"{name} belongs to nobody")
    for upload in uploads.every(platform.ledger, TENANT):
        if upload.state == uploads.RECEIVING and upload.size == len(CONTENT):
            platform.send(upload.id)
            platform.settle()
            if uploads.get(platform.ledger, TENANT, upload.id).state != uploads.READY:
                wrong.append("an upload cannot be gone on with")
        elif upload.state == uploads.RECEIVING:
            uploads.cancel(platform.ledger, WHO, TENANT, upload.id)
            platform.store.drop(TENANT, upload.id)
        elif upload.state not in (uploads.READY, uploads.REFUSED):
            wrong.append(f"an upload is {upload.state}")
    if any(model.name == "city" for model in models.every(platform.ledger, TENANT)):
        models.delete(platform.ledger, WHO, TENANT, "city")
    platform.settle()
    wrong += [f"{name} is left" for name, *_ in platform.store.everything()]
    wrong += [f"{part.name} is left" for part in platform.root.glob(".*")]
    wrong += [f"a row of {digest} is left" for _, digest in artifacts.every(platform.ledger)]
    return wrong


def prepared(home: Path, inspect: str) -> None:
    """Make a home with a tenant and its key for files."""
    home.mkdir()
    platform = Platform(home, inspect)
    with platform.ledger.changing() as transaction:
        tenants.add(transaction, "operator", TENANT, "acme", "default")
    platform.store.received(TENANT, "u")
    platform.store.keep(TENANT, "0" * 64, [b"x"])
    platform.store.delete(TENANT, "0" * 64)
    platform.engine.dispose()


def killed_at(number: int) -> None:
    """Kill this process before its n-th step from now on."""
    steps = itertools.count(1)

    def step(name: str) -> None:
        if next(steps) == number:
            os.write(REPORT, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in STEPS:
            return
        if event == "open" and ".part" not in str(arguments[0]):
            return
        step(f"{event} {' '.join(map(str, arguments))[-120:]}")

    sys.addaudithook(hook)
    sa.event.listen(sa.Engine, "commit", lambda _: step("commit"))


def forked(job: Callable[[], object]) -> int:
    """Run a job in a process of its own, and return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


REPORT = -1


def main(directory: Path, inspect: str, first: int, each: int) -> None:
    """Kill at every `each`-th step, and look what a restart makes of it."""
    global REPORT  # of the process that is killed
    template = directory / "template"
    assert forked(lambda: prepared(template, inspect)) == 0
    for number in itertools.count(first, each):
        home = directory / f"killed-{number}"
        shutil.copytree(template, home)
        reading, REPORT = os.pipe()

        def until_killed(home: Path = home, number: int = number) -> None:
            platform = Platform(home, inspect)
            killed_at(number)
            work(platform)

        ended = forked(until_killed)
        os.close(REPORT)
        with os.fdopen(reading) as said:
            where = said.read().strip()
        wrong = home / "wrong.json"
        after = forked(
            lambda home=home, wrong=wrong: wrong.write_text(
                json.dumps(mended(Platform(home, inspect)))
            )
        )
        found = json.loads(wrong.read_text()) if after == 0 else ["it cannot be mended"]
        print(json.dumps({"n": number, "at": where, "wrong": found}), flush=True)
        shutil.rmtree(home)
        if ended == 0:
            return
        assert ended == -signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
