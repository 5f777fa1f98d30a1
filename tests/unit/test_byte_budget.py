"""The byte budget: what requests hold together never exceeds it, and comes back exactly."""

import pytest

from polyolo.errors import OverloadedError
from polyolo.serving.budget import ByteBudget, Share


def test_shares_add_up_and_come_back():
    """A share that grows past the budget is refused with what it held before intact."""
    budget = ByteBudget(100)
    one, other = Share(budget), Share(budget)
    one.grow(60)
    other.grow(40)
    with pytest.raises(OverloadedError):
        other.grow(1)
    assert budget.held == 100
    one.release()
    assert budget.held == 40
    other.grow(60)
    other.release()
    other.release()
    assert budget.held == 0
