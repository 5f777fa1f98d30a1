"""The work queue: merged, timed, one worker a name."""

from __future__ import annotations

import threading
import time

from polyolo.control.workqueue import WorkQueue


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
