"""Which copies stay, which go on for a while, and the order in which gateways hear of them."""

from polyolo.drivers.replicas import to_stay, together
from polyolo.types import OUTDATED, Phase, RuntimeStatus


def copy(phase: Phase, generation: int = 1, release: str = "", endpoint: str = "") -> RuntimeStatus:
    return RuntimeStatus(
        tenant="t_a",
        phase=phase,
        observed_generation=generation,
        release=release,
        endpoints=(endpoint,) if endpoint else (),
    )


def test_a_copy_of_before_goes_on_until_another_one_answers_in_its_place():
    """One for one: of two old ones both, then the first, then none; a failed one never."""
    old = {n: copy(Phase.READY, OUTDATED) for n in (1, 2)}
    failed = {3: copy(Phase.FAILED, OUTDATED)}
    assert to_stay({**old, **failed}, {**old, **failed}, 2) == (set(), {1, 2})
    new = {4: copy(Phase.STARTING), 5: copy(Phase.STARTING)}
    assert to_stay({**old, **new}, {**old, **new}, 2) == ({4, 5}, {1, 2})
    new[4] = copy(Phase.READY)
    assert to_stay({**old, **new}, {**old, **new}, 2) == ({4, 5}, {1})
    new[5] = copy(Phase.READY)
    assert to_stay({**old, **new}, {**old, **new}, 2) == ({4, 5}, set())
    assert to_stay(old, old, 0) == (set(), set())


def test_a_copy_of_another_release_is_treated_the_same():
    """It is not among those of the release that is wanted, and answers until one of those does."""
    seen = {1: copy(Phase.READY, release="0.1"), 2: copy(Phase.STARTING)}
    assert to_stay({2: seen[2]}, seen, 1) == ({2}, {1})
    seen[2] = copy(Phase.READY)
    assert to_stay({2: seen[2]}, seen, 1) == ({2}, set())


def test_those_to_be_replaced_are_named_last():
    """So that they are the ones too many; the others stay in the order that they are in."""
    copies = [
        copy(Phase.READY, OUTDATED, endpoint="before"),
        copy(Phase.READY, 2, "0.1", endpoint="another"),
        copy(Phase.READY, 3, endpoint="one"),
        copy(Phase.READY, 2, endpoint="two"),
    ]
    status = together("t_a", copies)
    assert status.endpoints == ("one", "two", "before", "another")
    assert status.observed_generation == OUTDATED
