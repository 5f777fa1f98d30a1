"""Signing keys over the months: published before they sign, good until their tokens are over."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyolo import tokens
from polyolo.control import db, secrets
from polyolo.control.access import OPERATOR
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.service import audit
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import AHEAD_S, ROTATE_S, TOKEN_S, Signer
from polyolo.control.service.vault import Vault
from polyolo.errors import InvalidTokenError
from polyolo.tokens import Claims
from tests.integration.control_plane import settings

URL = "https://yolo.example"


@dataclass
class Stage:
    """A signer on a database, and the time of day."""

    ledger: Ledger
    vault: Vault
    now: float = 1_700_000_000.0

    def signer(self) -> Signer:
        return Signer(self.ledger, self.vault, URL)

    def issue(self, signer: Signer) -> bytes:
        at = int(self.now)
        return signer.sign(
            Claims(
                id="j",
                client="oc_abcdefghijkl",
                tenant="t_1",
                scopes=("detect",),
                issued_at=at,
                expires_at=at + TOKEN_S,
            )
        ).encode()

    def good(self, signer: Signer, token: bytes) -> bool:
        with self.ledger.reading() as connection:
            rules = signer.rules(connection)
        try:
            tokens.judge(token, rules, tokens.public_keys(rules), self.now)
        except InvalidTokenError:
            return False
        return True

    def published(self, signer: Signer) -> list[str]:
        with self.ledger.reading() as connection:
            return [key["kid"] for key in signer.rules(connection).keys]


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Iterator[Stage]:
    home = tmp_path / "home"
    home.mkdir()
    engine = db.open_engine(settings(home).database_url)
    migrate(engine)
    vault = Vault(secrets.master(home))
    made = Stage(Ledger(engine, audit.opened(engine, vault)), vault)
    made.ledger.clock = lambda: made.now
    yield made
    engine.dispose()


def test_a_new_key_is_published_before_it_signs_and_the_old_one_as_long_as_it_is_needed(stage):
    """At no moment does a token that was issued within its time fail, whichever key signed it."""
    signer = stage.signer()
    (first,) = stage.published(signer)
    old = stage.issue(signer)
    stage.now += ROTATE_S - 1
    assert not stage.good(signer, old)
    assert stage.published(signer) == [first]
    stage.now += 2
    last = stage.issue(signer)  # makes the next key
    both = stage.published(signer)
    assert both[0] == first
    assert len(both) == 2
    stage.now += AHEAD_S - 5
    last = stage.issue(signer)
    assert first.encode() in _head(last)
    stage.now += 10
    fresh = stage.issue(signer)
    assert both[1].encode() in _head(fresh)
    assert stage.good(signer, last)
    assert stage.good(signer, fresh)
    stage.now += TOKEN_S + 60
    assert stage.published(signer) == [both[1]]
    again = stage.issue(signer)  # clears the old key away
    assert stage.good(stage.signer(), again)
    with stage.ledger.reading() as connection:
        assert [r.id for r in connection.execute(db.signing_keys.select())] == [both[1]]


def _head(token: bytes) -> bytes:
    head = token.split(b".")[0]
    return base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4))


def test_another_process_signs_with_the_same_key(stage):
    """Control processes that share a database share the keys, sealed in it."""
    one, two = stage.signer(), stage.signer()
    assert stage.published(one) == stage.published(two)
    assert stage.good(two, stage.issue(one))
    assert stage.good(one, stage.issue(two))


def test_a_rotation_at_once_ends_every_token(stage):
    """After a leak nothing that the old key signed is good any more."""
    signer = stage.signer()
    token = stage.issue(signer)
    before = stage.ledger.revision()
    signer.renew(by=OPERATOR)
    assert stage.ledger.revision() > before  # gateways are told
    assert not stage.good(signer, token)
    assert stage.good(signer, stage.issue(signer))


def test_a_private_key_is_sealed_for_its_row(stage):
    """Neither in clear nor good in another row."""
    stage.signer()
    with stage.ledger.reading() as connection:
        row = connection.execute(db.signing_keys.select()).one()
    assert '"d"' not in row.private
    assert "d" not in row.public
    with stage.ledger.changing() as transaction:
        transaction.connection.execute(db.signing_keys.update().values(id="moved"))
    with pytest.raises(secrets.SealedError):
        stage.issue(stage.signer())
