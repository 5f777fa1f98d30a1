"""Guesses at passwords are slowed down, by all control planes of a database together."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.guesses import ACCOUNT, PAIR, SOURCE, Guesses
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.errors import RateLimitedError
from tests.integration.control_plane import database_url

HERE = "203.0.113.7"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def planes(tmp_path: Path, clock: Clock) -> Iterator[list[Guesses]]:
    """Two control planes on one database."""
    url = database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}"
    made = []
    for _ in range(2):
        engine, vault = db.open_engine(url), Vault(LocalMaster(bytes(32)))
        migrate(engine)
        ledger = Ledger(engine, audit.opened(engine, vault), clock=clock)
        made.append(Guesses(ledger=ledger, vault=vault))
    yield made
    for guesses in made:
        guesses.ledger._engine.dispose()


@pytest.fixture
def guesses(planes: list[Guesses]) -> Guesses:
    return planes[0]


def let_through(guesses: Guesses, account: str, source: str = HERE) -> bool:
    try:
        guesses.begin(account, source)
    except RateLimitedError:
        return False
    return True


def test_two_control_planes_count_together(planes: list[Guesses]):
    """At once through both: as many tries as through one, whoever they come to."""
    with ThreadPoolExecutor(4) as pool:
        tried = list(pool.map(lambda n: let_through(planes[n % 2], "ann@example.com"), range(12)))
    assert tried.count(True) == PAIR.free


def test_an_account_from_everywhere(guesses: Guesses, clock: Clock):
    """A guesser with hundreds of addresses gets one account's tries slowed to one a minute."""
    let = 0
    for second in range(600):
        clock.now += 1
        let += let_through(guesses, "ann@example.com", f"10.0.{second // 250}.{second % 250}")
    assert ACCOUNT.free < let < ACCOUNT.free + 10 + 10


def test_many_accounts_from_one_address(guesses: Guesses):
    """One common password against every account: the address itself is slowed down."""
    for number in range(SOURCE.free):
        guesses.begin(f"user{number}@example.com", HERE)
    assert not let_through(guesses, "another@example.com")


def test_an_account_of_ones_own_wipes_no_slate(guesses: Guesses):
    """Signing in rightly between guesses at others does not make the guesses free."""
    for number in range(SOURCE.free - 1):
        guesses.begin(f"user{number}@example.com", HERE)
        if number % 7 == 0:
            guesses.begin("mine@example.com", HERE)
            guesses.right("mine@example.com", HERE)
    guesses.begin("one.more@example.com", HERE)
    assert not let_through(guesses, "another@example.com")


def test_the_right_password_clears_ones_own_mistakes(guesses: Guesses):
    """Four mistypes, then right: the next four are free again."""
    for _ in range(5):
        for _ in range(PAIR.free - 1):
            guesses.begin("ann@example.com", HERE)
        guesses.begin("ann@example.com", HERE)
        guesses.right("ann@example.com", HERE)


def test_what_is_counted_names_nobody_and_is_forgotten(guesses: Guesses, clock: Clock):
    """Neither account nor address is in the table; half an hour later there is nothing at all."""
    guesses.begin("ann@example.com", HERE)
    with guesses.ledger.reading() as connection:
        kept = connection.execute(sa.select(db.tries)).all()
    assert len(kept) == 3
    assert "ann" not in repr(kept)
    assert HERE not in repr(kept)
    clock.now += 2 * SOURCE.longest_s + 1
    guesses.begin("bob@example.com", "198.51.100.1")
    with guesses.ledger.reading() as connection:
        assert len(connection.execute(sa.select(db.tries)).all()) == 3
