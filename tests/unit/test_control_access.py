"""Who is asking and what they may do, and the names of things."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyolo.control import access, names
from polyolo.control.access import OPERATOR, StoredKey, allowed, presented, principal
from polyolo.control.api.bodies import duration, moment
from polyolo.errors import InvalidValueError, UnauthenticatedError
from polyolo.types import Principal

OPERATOR_KEY = names.operator_key()
KEY = names.api_key("abcdefghijk1")
STORED = StoredKey(
    id="abcdefghijk1",
    tenant="t_a",
    digest=names.digest(KEY),
    scopes=("detect", "models:read"),
    expires_at=None,
    revoked_at=None,
    tenant_state="active",
)
MINE = Principal(kind="key", id="k", tenant="t_a", scopes=("models:read",))


def who(credential: str, stored: StoredKey | None = STORED) -> tuple[Principal, str]:
    return principal(
        credential,
        operator_digest=names.digest(OPERATOR_KEY),
        find_key=lambda identifier: stored if stored and stored.id == identifier else None,
        now=1000.0,
    )


def test_credentials_come_in_two_headers():
    """Authorization: Bearer, whatever its case, or X-API-Key."""
    assert presented({"authorization": "Bearer abc"}) == "abc"
    assert presented({"authorization": "bearer  abc "}) == "abc"
    assert presented({"x-api-key": "abc"}) == "abc"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Basic abc"}, {"authorization": "Bearer "}, {"x-api-key": ""}]
)
def test_no_credential_is_told_what_to_send(headers):
    """401 with the header's form in words."""
    with pytest.raises(UnauthenticatedError, match=r"Bearer"):
        presented(headers)


def test_the_operator_and_a_key_are_known():
    """The tenant comes from the key."""
    assert who(OPERATOR_KEY) == (OPERATOR, "")
    mine, state = who(KEY)
    assert (mine.kind, mine.tenant, mine.scopes, state) == ("key", "t_a", STORED.scopes, "active")


@pytest.mark.parametrize(
    ("credential", "stored"),
    [
        ("", STORED),
        ("pk_abcdefghijk1_short", STORED),
        (KEY + "\n", STORED),
        (KEY[:-1] + ("A" if KEY[-1] != "A" else "B"), STORED),
        (KEY, None),
        (KEY, replace(STORED, revoked_at=1.0)),
        (KEY, replace(STORED, expires_at=1000.0)),
        (KEY, replace(STORED, tenant_state="deleting")),
        (OPERATOR_KEY[:-1], STORED),
        ("pä_" + "x" * 43, STORED),
    ],
    ids=range(10),  # the keys are new in every run
)
def test_whatever_is_wrong_with_a_key_the_answer_is_one(credential, stored):
    """Unknown, malformed, wrong, revoked, expired: the same 401."""
    with pytest.raises(UnauthenticatedError) as caught:
        who(credential, stored)
    assert caught.value.detail == "this key is not known, has expired or was revoked"


@pytest.mark.parametrize(
    ("principal_", "action", "tenant", "state", "may"),
    [
        (OPERATOR, "tenants:create", None, "", True),
        (OPERATOR, "models:write", "t_b", "", True),
        (MINE, "tenant:read", "t_a", "active", True),
        (MINE, "models:read", "t_a", "active", True),
        (MINE, "models:write", "t_a", "active", False),
        (MINE, "models:read", "t_b", "active", False),
        (MINE, "models:read", "t_a", "suspended", False),
        (MINE, "tenants:create", None, "active", False),
        (MINE, "tenants:change", "t_a", "active", False),
        (MINE, "usage:read-all", None, "active", False),
        (MINE, "models:read", None, "active", False),
        (MINE, "unheard:of", "t_a", "active", False),
        (access.GATEWAY, "models:read", "t_a", "", False),
    ],
)
def test_what_is_allowed(principal_, action, tenant, state, may):
    """A key does what its scopes say, in its own tenant, and never what the operator does."""
    verdict, reason = allowed(principal_, action, tenant, state=state)
    assert verdict is may
    assert bool(reason) is not may


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 63, "t_1234567890"])
def test_names_that_may_be(name):
    """Letters, digits, dots, underscores, hyphens; up to 63."""
    assert names.checked(name, "tenant", reserved="me") == name


@pytest.mark.parametrize(
    "name",
    ["", "me", ".a", "-a", "_a", "x" * 64, "a b", "a/b", "a\n", "ä", "..", "a\0", "١", "a'--"],  # noqa: RUF001
)
def test_names_that_may_not_be(name):
    """Everything else is 422."""
    with pytest.raises(InvalidValueError):
        names.checked(name, "tenant", reserved="me")


def test_keys_have_the_contracts_form():
    """pk_<id>_<secret>, never the same, and the id can be read back."""
    made = {names.api_key(names.key_id()) for _ in range(50)}
    assert len(made) == 50
    for key in made:
        identifier = names.key_id_of(key)
        assert identifier is not None
        assert len(identifier) == 12


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90d", 7776000), ("12h", 43200), ("30m", 1800), (60, 60), ("2w", 1209600)],
)
def test_durations(given, seconds):
    """Days, hours, minutes, weeks, seconds."""
    assert duration(given) == seconds
    assert duration(None) is None


@pytest.mark.parametrize("given", ["", "d", "-1", 0, "1y", "1.5h", "99999d", "9" * 30, "١d"])  # noqa: RUF001
def test_durations_that_are_none(given):
    """Named with their range."""
    with pytest.raises(InvalidValueError, match="expires_in"):
        duration(given)


def test_moments():
    """Unix seconds, dates and times; UTC unless they say."""
    assert moment("1700000000", "since", 0) == 1700000000
    assert moment("2026-01-01", "since", 0) == 1767225600
    assert moment("2026-01-01T01:00:00+01:00", "since", 0) == 1767225600
    assert moment(None, "since", 7) == 7
    with pytest.raises(InvalidValueError, match="until"):
        moment("yesterday", "until", 0)
