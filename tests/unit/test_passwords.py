"""Passwords: which are taken, how they are kept, and that nobody learns from the time it takes."""

from __future__ import annotations

import statistics
import threading
import time

import pytest

from polyolo.control import passwords
from polyolo.control.passwords import COMMON, Passwords
from polyolo.errors import InvalidValueError, OverloadedError


@pytest.mark.parametrize("password", ["x" * 9, "y" * 201, "", "aaaaaaaaaa", "abababababab"])
def test_too_short_too_long_too_plain(password):
    """10 to 200 characters, four of them different."""
    with pytest.raises(InvalidValueError, match="password"):
        passwords.checked(password)


@pytest.mark.parametrize("password", ["PassWord123", "1234567890", "qwertyuiop", "Changeme123"])
def test_the_common_ones_are_refused_in_any_case(password):
    """The list is of those that are long enough, whatever their case."""
    with pytest.raises(InvalidValueError, match="too many people"):
        passwords.checked(password)


@pytest.mark.parametrize("password", ["ann.maria.smith", "Ann.Maria.Smith@Example.com"])
def test_the_address_is_no_password(password):
    """Neither the whole of it, nor the part before the @."""
    with pytest.raises(InvalidValueError, match="e-mail"):
        passwords.checked(password, email="ann.maria.smith@example.com")


def test_good_ones_are_taken():
    """Phrases, other scripts, and what only looks short."""
    for password in ("a long enough secret", "пароль-не-простой", "🌰 chestnuts roast"):
        passwords.checked(password, email="ann@example.com")


def test_the_list_holds_what_it_may():
    """Every entry is long enough to be asked about, in lower case, and there once."""
    assert len(COMMON) > 90
    assert all(len(one) >= passwords.SHORTEST and one == one.casefold() for one in COMMON)


def test_hashed_and_matched():
    """argon2id with its own salt each time; composed and decomposed letters are one password."""
    kept = Passwords()
    first, second = kept.hash("Über dem Fluß"), kept.hash("Über dem Fluß")
    assert first != second
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert kept.matches(first, "U\u0308ber dem Fluß")
    assert not kept.matches(first, "über dem Fluß")
    assert not kept.outdated(first)
    assert kept.outdated(first.replace("t=3", "t=2"))


def test_an_unknown_account_takes_as_long():
    """The stand-in has today's parameters, and its check the time of a real one."""
    kept = Passwords()
    assert not kept.outdated(kept.nobody)
    stored = kept.hash("a long enough secret")

    def took(known: str | None) -> float:
        started = time.process_time()
        assert not kept.matches(known, "a wrong password")
        return time.process_time() - started

    known = statistics.median(took(stored) for _ in range(7))
    unknown = statistics.median(took(None) for _ in range(7))
    assert 0.5 < known / unknown < 2.0


def test_a_very_long_one_is_not_worked_on():
    """What is beyond the limit neither matches nor costs more."""
    kept = Passwords()
    stored = kept.hash("x" * passwords.LONGEST)
    assert kept.matches(stored, "x" * passwords.LONGEST)
    assert not kept.matches(stored, "x" * 100_000)


def test_too_many_at_once_are_turned_away():
    """The memory of hashes is bounded; who has waited long enough hears 503."""
    kept = Passwords(at_once=1, patience_s=0.05)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with kept._slot():
            inside.set()
            go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    with pytest.raises(OverloadedError):
        kept.hash("a long enough secret")
    go.set()
    holder.join()
    kept.hash("a long enough secret")
