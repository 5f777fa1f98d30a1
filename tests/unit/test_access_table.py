"""The table of permissions: every action against every role and scope."""

from __future__ import annotations

import pytest

from polyolo.control import names
from polyolo.permissions import OPERATOR_ONLY, PUBLIC, ROLES, SCOPE_OF, allowed
from polyolo.types import Principal

OPERATOR = Principal(kind="operator", id="operator")
GATEWAY = Principal(kind="gateway", id="gateway")
PEOPLE_ONLY = {"users:write", "tenant:own", "account:own"}
EXPECTED = {
    "owner": set(SCOPE_OF),
    "developer": set(SCOPE_OF)
    - {"users:read", "users:write", "audit:read", "tenant:export", "tenant:erase"},
    "viewer": {
        *("tenant:read", "account:own", "models:read", "settings:read", "runtime:read"),
        *("usage:read", "limits:read"),
    },
    "billing": {"tenant:read", "account:own", "usage:read", "limits:read"},
}
"""What each role may do, written down once more, by hand."""


def user(role: str) -> Principal:
    return Principal(kind="user", id="u_1", tenant="t_a", scopes=ROLES[role])


@pytest.mark.parametrize("role", ROLES)
def test_what_each_role_may(role):
    """In its own tenant what the table says; elsewhere, and on the platform, nothing."""
    may = {action for action in SCOPE_OF if allowed(user(role), action, "t_a")[0]}
    assert may == EXPECTED[role]
    for action in [*SCOPE_OF, *OPERATOR_ONLY]:
        assert not allowed(user(role), action, "t_b")[0]
        assert not allowed(user(role), action, None)[0]
        assert not allowed(user(role), action, "t_a", state="suspended")[0]


@pytest.mark.parametrize("scope", names.SCOPES)
@pytest.mark.parametrize("kind", ["key", "token"])
def test_what_each_scope_opens(kind, scope):
    """A key or a token with one scope does what needs it, and what needs none."""
    who = Principal(kind=kind, id="k", tenant="t_a", scopes=(scope,))
    for action, needed in SCOPE_OF.items():
        verdict, reason = allowed(who, action, "t_a")
        assert verdict is (needed in (None, scope)), action
        assert bool(reason) is not verdict


def test_no_key_can_have_what_is_for_people():
    """The scopes of people are none that a key is given."""
    assert not PEOPLE_ONLY & set(names.SCOPES)
    everything = Principal(kind="key", id="k", tenant="t_a", scopes=names.SCOPES)
    for action in ("users:read", "users:write", "account:own", "tenant:export", "tenant:erase"):
        assert not allowed(everything, action, "t_a")[0]


def test_roles_have_scopes_that_there_are():
    """Every scope of a role is a key's or for people; every scope that is needed, somebody has."""
    assert {scope for scopes in ROLES.values() for scope in scopes} == {*names.SCOPES, *PEOPLE_ONLY}
    assert {scope for scope in SCOPE_OF.values() if scope} <= set(ROLES["owner"])


def test_the_operator_does_all_but_what_an_account_does():
    """Any tenant, suspended or not; but the operator's key is no user."""
    for action in [*SCOPE_OF, *OPERATOR_ONLY]:
        assert allowed(OPERATOR, action, "t_a", state="suspended")[0] is (action != "account:own")


def test_what_is_in_no_table_is_nobodys():
    """Not the operator's either; and no action stands in two tables."""
    for who in (OPERATOR, GATEWAY, user("owner"), None):
        assert not allowed(who, "unheard:of", "t_a")[0]
    assert not PUBLIC & OPERATOR_ONLY
    assert not (PUBLIC | OPERATOR_ONLY) & SCOPE_OF.keys()


def test_without_a_credential_only_what_is_public():
    """Registration and the like; a gateway's token opens no more than that."""
    for who in (None, GATEWAY):
        for action in [*SCOPE_OF, *OPERATOR_ONLY]:
            assert not allowed(who, action, "t_a")[0]
        for action in PUBLIC:
            assert allowed(who, action)[0]
