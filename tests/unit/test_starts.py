"""Who may start when many want to: so many at once, the awaited first, and nobody never."""

from polyolo.control.starts import Starts


def test_only_so_many_at_once_and_the_next_in_line_is_told():
    """The third waits until one of the two is over; asking again changes nothing."""
    starts = Starts(2)
    assert [starts.may(name, 0.0) for name in ("a", "b", "c", "d", "a", "c")] == [
        *(True, True, False, False),
        *(True, False),
    ]
    assert starts.over("a") == ["c"]
    assert not starts.may("d", 1.0)
    assert starts.may("c", 1.0)
    assert starts.over("b") == ["d"]
    assert starts.over("b") == []


def test_who_is_waited_for_comes_first():
    """In the order in which they were asked for, before those that stood in line earlier."""
    starts = Starts(1)
    assert starts.may("busy", 0.0)
    for name in ("a", "b", "c"):
        assert not starts.may(name, 0.0)
    starts.urge("c")
    starts.urge("new")
    order = []
    name = "busy"
    for _ in range(4):
        (name,) = starts.over(name)
        assert starts.may(name, 0.0)
        order.append(name)
    assert order == ["c", "new", "a", "b"]


def test_one_that_hangs_keeps_nobody_waiting_for_long():
    """After five seconds another one may start beside it."""
    starts = Starts(1)
    assert starts.may("hangs", 0.0)
    assert not starts.may("a", 4.9)
    assert starts.may("a", 5.1)
    assert not starts.may("b", 5.2)


def test_one_that_no_longer_wants_to_is_no_obstacle():
    """Suspended while it stood in line, or never there: the others move up."""
    starts = Starts(1)
    assert starts.may("busy", 0.0)
    assert not starts.may("a", 0.0)
    assert not starts.may("b", 0.0)
    assert starts.over("a") == []
    assert starts.over("nobody") == []
    assert starts.over("busy") == ["b"]
