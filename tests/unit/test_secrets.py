"""Secrets at rest: sealed for one place, by a key that is not in the database."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from polyolo.control import db, rotation, secrets
from polyolo.control.home import held
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster, Place, SealedError, seal, unseal
from polyolo.control.service import audit
from polyolo.control.service.vault import Vault

PLACE = Place(table="users", column="email", row="u_1", tenant="t_1")
KEY = bytes(range(32))


def test_a_sealed_value_opens_in_its_place_only():
    """Another table, column, row or tenant: it does not open."""
    sealed = seal(KEY, b"canary", PLACE)
    assert unseal(KEY, sealed, PLACE) == b"canary"
    assert "canary" not in sealed
    assert seal(KEY, b"canary", PLACE) != sealed
    for field in ("table", "column", "row", "tenant"):
        with pytest.raises(SealedError):
            unseal(KEY, sealed, replace(PLACE, **{field: "x"}))
    shifted = replace(PLACE, row="u_1t", tenant="_1")  # the same letters, cut elsewhere
    with pytest.raises(SealedError):
        unseal(KEY, sealed, shifted)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_value_does_not_open(damage):
    """One bit, a part, nothing, nonsense."""
    sealed = seal(KEY, b"canary", PLACE)
    raw = bytearray(base64.b64decode(sealed))
    raw[-1] ^= 1
    damaged = {
        "flip": base64.b64encode(raw).decode(),
        "cut": sealed[:20],
        "empty": "",
        "text": "no base64!",
    }
    with pytest.raises(SealedError):
        unseal(KEY, damaged[damage], PLACE)


def test_the_master_key_is_made_once_and_private(tmp_path: Path):
    """Mode 0600, the same afterwards; the environment wins; what is no key is said to be none."""
    first = secrets.master(tmp_path, {})
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600
    assert secrets.master(tmp_path, {}).id == first.id
    other = secrets.new_key()
    assert secrets.master(tmp_path, {secrets.VARIABLE: other}).id != first.id
    assert other not in repr(secrets.master(tmp_path, {secrets.VARIABLE: other}))
    with pytest.raises(OSError, match="32 bytes in base64"):
        secrets.master(tmp_path, {secrets.VARIABLE: "c2hvcnQ="})
    (tmp_path / "master.key").write_text("nonsense")
    with pytest.raises(OSError, match=r"master\.key holds no master key"):
        secrets.master(tmp_path, {})


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = db.open_engine(f"sqlite:///{tmp_path / 'polyolo.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


def test_each_tenant_has_a_key_of_its_own(engine: sa.Engine):
    """Swapped between tenants, or without its key's row, a value does not open."""
    vault = Vault(LocalMaster(KEY))
    other = replace(PLACE, tenant="t_2")
    with db.writing(engine) as connection:
        sealed = vault.seal(connection, "ünicode", PLACE)
        vault.seal(connection, "x", other)
        assert vault.unseal(connection, sealed, PLACE) == "ünicode"
        with pytest.raises(SealedError):
            vault.unseal(connection, sealed, other)
        wrapped = dict(connection.execute(sa.select(db.data_keys)).all())  # type: ignore[arg-type]
        assert wrapped["t_1"] != wrapped["t_2"]
        table = db.data_keys
        swapped = table.update().where(table.c.tenant == "t_2").values(wrapped=wrapped["t_1"])
        connection.execute(swapped)
        with pytest.raises(SealedError):
            vault.unseal(connection, sealed, other)
        connection.execute(table.delete())
        with pytest.raises(SealedError, match="erased"):
            vault.unseal(connection, sealed, PLACE)


def test_another_master_key_says_which_one_is_missing(engine: sa.Engine):
    """Not nonsense, and not a new key in silence."""
    with db.writing(engine) as connection:
        sealed = Vault(LocalMaster(KEY)).seal(connection, "x", PLACE)
        with pytest.raises(SealedError, match=LocalMaster(KEY).id):
            Vault(LocalMaster(bytes(32))).unseal(connection, sealed, PLACE)


def test_rotation_keeps_every_secret_and_retires_the_key(engine: sa.Engine, tmp_path: Path):
    """Values stay as they are, the old master key opens nothing any more."""
    old = secrets.master(tmp_path, {})
    with db.writing(engine) as connection:
        sealed = Vault(old).seal(connection, "x", PLACE)
    signer = audit.opened(engine, Vault(old))
    assert rotation.rotate_master(tmp_path, f"sqlite:///{tmp_path / 'polyolo.db'}", {}) == 2
    fresh = secrets.master(tmp_path, {})
    assert fresh.id != old.id
    assert not (tmp_path / secrets.NEXT).exists()
    with db.writing(engine) as connection:
        assert Vault(fresh).unseal(connection, sealed, PLACE) == "x"
        with pytest.raises(SealedError):
            Vault(old).unseal(connection, sealed, PLACE)
    assert audit.opened(engine, Vault(fresh)).public == signer.public


@pytest.mark.parametrize("committed", [False, True])
def test_a_rotation_that_was_killed_is_settled_at_the_next_start(
    engine: sa.Engine, tmp_path: Path, *, committed: bool
):
    """Before the commit the old key stays, after it the new one takes its place."""
    old = secrets.master(tmp_path, {})
    with db.writing(engine) as connection:
        sealed = Vault(old).seal(connection, "x", PLACE)
    secrets.write_key(tmp_path / secrets.NEXT, secrets.new_key())
    fresh = secrets.read_key(tmp_path / secrets.NEXT)
    if committed:
        rotation.rewrap(engine, old, fresh)
    now = rotation.settled(tmp_path, engine, {})
    assert now.id == (fresh if committed else old).id
    assert not (tmp_path / secrets.NEXT).exists()
    with db.writing(engine) as connection:
        assert Vault(now).unseal(connection, sealed, PLACE) == "x"
    assert secrets.master(tmp_path, {}).id == now.id


def test_no_rotation_under_a_running_platform(tmp_path: Path):
    """It would go on sealing with the old key."""
    with held(tmp_path), pytest.raises(OSError, match="another polyolo runs"):
        rotation.rotate_master(tmp_path, f"sqlite:///{tmp_path / 'x.db'}", {})
