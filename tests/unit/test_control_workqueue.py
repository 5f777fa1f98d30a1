"""The work queue: merged, timed, one worker a name; and who works it off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from polyolo.control.service.ledger import Ledger
from polyolo.control.workqueue import Workers, WorkQueue


def drain(queue: WorkQueue) -> list[str]:
    names = []
    queue.put("~end", after=0.001)
    while (name := queue.take()) != "~end":
        assert name is not None
        names.append(name)
        queue.done(name)
    return names


def test_duplicates_are_merged():
    """Ten puts of one name are one look."""
    queue = WorkQueue()
    for _ in range(10):
        queue.put("a")
    queue.put("b")
    assert drain(queue) == ["a", "b"]


def test_the_earliest_time_wins():
    """A put for now overrules one for later, not the other way round; and is looked at once."""
    clock = [0.0]
    queue = WorkQueue(clock=lambda: clock[0])
    queue.put("a", after=5)
    queue.put("a")
    queue.put("a", after=9)
    assert queue.take() == "a"
    queue.done("a")
    queue.put("b", after=1)
    clock[0] = 20.0
    assert queue.take() == "b"


def test_a_name_is_held_back_until_its_time():
    """take waits for the time, not longer."""
    queue = WorkQueue()
    queue.put("a", after=0.05)
    started = time.monotonic()
    assert queue.take() == "a"
    assert 0.05 <= time.monotonic() - started < 1


def test_a_put_during_the_work_is_kept_for_after_it():
    """One worker at a time: the second look comes when the first is done."""
    queue = WorkQueue()
    queue.put("a")
    assert queue.take() == "a"
    queue.put("a")
    queue.put("b")
    assert queue.take() == "b"
    taken: list[str | None] = []
    other = threading.Thread(target=lambda: taken.append(queue.take()))
    other.start()
    other.join(0.05)
    assert taken == []
    queue.done("a")
    other.join(5)
    assert taken == ["a"]


def test_close_wakes_everybody():
    """A waiting take returns None, and so does every later one."""
    queue = WorkQueue()
    taken: list[str | None] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    waiting.start()
    queue.close()
    waiting.join(5)
    queue.put("a")
    assert taken == [None]
    assert queue.take() is None


def test_nothing_is_lost_among_many_threads():
    """Four workers, 200 names put three times: each is looked at, never by two at once."""
    queue = WorkQueue()
    held: set[str] = set()
    looked: set[str] = set()
    clashes = []
    lock = threading.Lock()

    def work() -> None:
        while (name := queue.take()) is not None:
            with lock:
                if name in held:
                    clashes.append(name)
                held.add(name)
                looked.add(name)
            with lock:
                held.discard(name)
            queue.done(name)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    names = {str(number) for number in range(200)}
    for _ in range(3):
        for name in names:
            queue.put(name)
    deadline = time.monotonic() + 10
    while looked != names and time.monotonic() < deadline:
        time.sleep(0.005)
    queue.close()
    for worker in workers:
        worker.join()
    assert looked == names
    assert clashes == []


class Changes:
    """As much of a ledger as workers see of it."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[int, str | None], None]] = []

    def change(self, tenant: str | None) -> None:
        for listener in self.listeners:
            listener(1, tenant)


@contextmanager
def workers(step: Callable[[str], float | None], **more: Any) -> Iterator[tuple[Workers, Changes]]:
    changes = Changes()
    made = Workers("test", cast("Ledger", changes), step, **{"leads": lambda: True} | more)
    made.start()
    try:
        yield made, changes
    finally:
        made.stop()
        assert not made.alive()
        assert not changes.listeners


def test_a_step_that_fails_is_taken_again_and_holds_up_nobody():
    """Of two tenants with one thread: the other one's step comes, then the failed one's again."""
    taken: queue.SimpleQueue[str] = queue.SimpleQueue()

    def step(tenant: str) -> None:
        taken.put(tenant)
        if tenant == "bad":
            raise RuntimeError("of its own")

    with workers(step, first=lambda: ["bad", "good"]) as (made, _):
        assert [taken.get(timeout=10) for _ in range(3)] == ["bad", "good", "bad"]
        assert made.alive()


def test_steps_wait_for_the_lease():
    """None is taken while another control plane may act; none is lost either."""
    taken: queue.SimpleQueue[str] = queue.SimpleQueue()
    asked, leading = threading.Semaphore(0), threading.Event()

    def leads() -> bool:
        asked.release()
        return leading.is_set()

    with workers(taken.put, leads=leads) as (made, changes):
        changes.change("a")
        changes.change(None)
        for _ in range(2):
            assert asked.acquire(timeout=10)
        assert taken.empty()
        leading.set()
        assert taken.get(timeout=10) == "a"
        made.look_at(["b"])
        assert taken.get(timeout=10) == "b"
