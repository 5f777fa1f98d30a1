"""Passwords: which ones are taken, and how they are kept (argon2id)."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from polyolo.errors import InvalidValueError, OverloadedError

SHORTEST, LONGEST = 10, 200
"""Characters. 10 with a list of the common ones is what NIST SP 800-63B calls for, and two more;
200 is longer than any passphrase, and keeps the hash's work bounded."""

_AT_ONCE = 2
"""Hashes at the same time: each takes 64 MiB and four threads for some 50 ms."""
_PATIENCE_S = 10.0

_NOBODY = "bm9ib2R5IGlzIGhlcmUuLg$wxeGJ6ywVsnZoGb2rN5ZoMeUlK0CSDX5nrEFBkYt9ZA"
"""Salt and hash that no password has, for accounts that do not exist: they take the same time."""

COMMON = frozenset(
    """
    1234567890 0123456789 9876543210 0987654321 1111111111 0000000000 1q2w3e4r5t 1qaz2wsx3edc
    1qazxsw23edc q1w2e3r4t5 q1w2e3r4t5y6 qwertyuiop qwerty12345 qwerty123456 qwertyuiop123
    asdfghjkl123 zxcvbnm123 password10 password11 password12 password123 password1234
    password12345 password123456 passw0rd123 passw0rd1234 p@ssw0rd123 p@ssword123 mypassword
    mypassword1 password!1 password2024 password2025 password2026 passwordpassword changeme123
    changemenow letmein123 letmein1234 welcome123 welcome1234 welcome2024 welcome2025 welcome2026
    iloveyou123 iloveyou12 admin12345 admin123456 administrator administrator1 adminadmin
    football123 baseball123 basketball superman123 batman12345 princess123 sunshine123
    monkey12345 dragon12345 michael123 charlie123 jennifer123 computer123 internet123
    abcdefghij abcdefghijk abcd123456 abc1234567 a123456789 123456789a 1234567891 12345678910
    123456789012 1234567899 123123123123 1231231231 1212121212 1122334455 112233445566
    123qweasdzxc qweasdzxc123 qazwsxedcrfv secret12345 test123456 testtest123 trustno1trustno1
    whatever123 starwars123 master12345 superuser1 rootroot123 default123 temporary1 summer2025
    summer2026 winter2025 winter2026 correcthorsebatterystaple
    """.split()  # noqa: SIM905  # as a list it would be ninety quoted words
)
"""The most common passwords of leaks that are long enough to be asked about."""


def checked(password: str, *, email: str = "") -> None:
    """Raise InvalidValueError for a password that may not be chosen, saying why."""
    plain = _normal(password)
    if not SHORTEST <= len(plain) <= LONGEST:
        raise InvalidValueError(f"password: it must have {SHORTEST} to {LONGEST} characters")
    folded = plain.casefold()
    if folded in COMMON or len(set(folded)) < 4:  # aaaaaaaaaa, ababababab
        raise InvalidValueError("password: too many people use this one, choose another")
    name, _, host = email.partition("@")
    if email and (folded in (email, name, host) or email in folded):
        raise InvalidValueError("password: it must not be your e-mail address")


class Passwords:
    """Hashes and verifies, few at a time. Any thread may use it; each call takes some 50 ms."""

    def __init__(
        self,
        hasher: PasswordHasher | None = None,
        *,
        at_once: int = _AT_ONCE,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Hash so many at a time, the next ones waiting for `patience_s` at most.

        hasher: argon2-cffi's defaults when None: argon2id, RFC 9106's second choice (64 MiB,
        3 passes).
        """
        self._hasher = hasher or PasswordHasher()
        cost = (self._hasher.memory_cost, self._hasher.time_cost, self._hasher.parallelism)
        self.nobody = "$argon2id$v=19$m={},t={},p={}$".format(*cost) + _NOBODY
        """What is stored of an account that does not exist: as costly as any, matched by none."""
        self._slots = threading.Semaphore(at_once)
        self._patience_s = patience_s

    def hash(self, password: str) -> str:
        """Return what is stored of a password, salt and parameters included."""
        with self._slot():
            return self._hasher.hash(_normal(password))

    def matches(self, stored: str | None, password: str) -> bool:
        """Say whether `password` is the one stored; None (no such account) takes as long."""
        with self._slot():
            try:
                # What is too long was never taken, but must not be worked on either.
                return self._hasher.verify(stored or self.nobody, _normal(password)[: LONGEST + 1])
            except VerificationError:
                return False

    def outdated(self, stored: str) -> bool:
        """Say whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=self._patience_s):
            raise OverloadedError("too many people sign in at once; come again shortly")
        try:
            yield
        finally:
            self._slots.release()


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)  # the same keys, whatever the keyboard sends
