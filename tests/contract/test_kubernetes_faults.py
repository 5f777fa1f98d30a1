"""The Kubernetes driver against an API server that fails in every way, and against its own end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from polyolo.drivers.kubernetes.naming import place
from polyolo.drivers.kubernetes.settings import Scaling
from polyolo.types import Phase
from tests.cluster.apiserver import KEDA, MONITORING, Asked, Fault
from tests.cluster.clusters import SETTINGS, Clustered, clustered, spec_of

WRITES = 16
"""Of a first apply: namespace, 13 objects, and twice more for the first number of replicas."""


@pytest.fixture
def cluster() -> Iterator[Clustered]:
    with clustered() as made:
        yield made


def until(look: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not look():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def settled(work: Callable[[], None], tries: int = 5) -> None:
    """Do something again and again, as the reconciler does, until it raises nothing."""
    for _ in range(tries):
        with suppress(OSError):
            work()
            return
    work()


def at_write(number: int, home: str, fault: Fault, times: int = 1) -> Callable[[Asked], object]:
    """Return a fault for the write of that number to a namespace, and `times - 1` tries more."""
    seen = 0
    lock = threading.Lock()

    def judge(asked: Asked) -> Fault | None:
        nonlocal seen
        if not asked.number or home not in asked.path:
            return None
        with lock:
            seen += 1
            return fault if number <= seen < number + times else None

    return judge


def reference(tenant: str) -> dict:
    """Return what a tenant's objects look like where nothing ever failed."""
    with clustered() as calm:
        calm.driver().apply(spec_of(tenant))
        return calm.there(tenant)


FAULTS = {
    "409": Fault(status=409),
    "429": Fault(status=429, headers={"retry-after": "0.01"}),
    "500": Fault(status=500),
    "broken off": Fault(),
    "broken off once done": Fault(done=True),
    "500 once done": Fault(status=500, done=True),
}


def by_home(cluster: Clustered) -> dict[str, Callable[[Asked], Fault | None]]:
    """Have each tenant's requests fail in a way of their own, by the namespace."""
    faults: dict[str, Callable[[Asked], Fault | None]] = {}

    def judge(asked: Asked) -> Fault | None:
        found = next((one for home, one in faults.items() if home in asked.path), None)
        return found(asked) if found else None

    cluster.server.fault = judge
    return faults


def home_of(number: int) -> str:
    return place(f"t_{number}", "polyolo").namespace


@pytest.mark.parametrize(
    ("name", "times"), [*((name, 1) for name in FAULTS), ("500", 5), ("broken off once done", 5)]
)
def test_a_fault_at_any_write_changes_nothing_of_the_outcome(cluster, name, times):
    """Whichever write fails, in the end the same objects are there, and nothing more is written."""
    driver, faults = cluster.driver(), by_home(cluster)
    numbers = range(1, WRITES + 2, 1 if times == 1 else 3)  # all tries cost the driver's pauses

    def fail(number: int) -> None:
        faults[home_of(number)] = at_write(number, home_of(number), FAULTS[name], times)
        settled(lambda: driver.apply(spec_of(f"t_{number}")))
        faults.pop(home_of(number))
        driver.apply(spec_of(f"t_{number}"))

    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(fail, numbers))
    for number in numbers:
        assert cluster.writes(lambda: driver.apply(spec_of(f"t_{number}"))) == []  # noqa: B023
    for number in (1, 4, 13):
        assert cluster.there(f"t_{number}") == reference(f"t_{number}")


def test_the_number_of_writes_is_known(cluster):
    """The loops over every write cover them all."""
    driver = cluster.driver()
    assert len(cluster.writes(lambda: driver.apply(spec_of("t_a")))) == WRITES + 1


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_is_made_good_by_the_next_process(cluster, done):
    """From some write on nothing gets through: a new driver brings the same about."""
    driver, faults = cluster.driver(), by_home(cluster)
    numbers = range(1, WRITES + 2)

    def crash(number: int) -> None:
        home = home_of(number)
        first = at_write(number, home, Fault(done=done))

        def dying(asked: Asked) -> Fault | None:
            fault = first(asked)
            if fault is not None:
                faults[home] = lambda _: Fault()
            return fault

        faults[home] = dying
        with pytest.raises(OSError, match="does not answer"):
            driver.apply(spec_of(f"t_{number}"))

    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(crash, numbers))
    driver.close()
    faults.clear()
    heir = cluster.driver()
    wanted = {kind for kind, _ in reference("t_1")}
    for number in numbers:
        heir.apply(spec_of(f"t_{number}"))
        assert cluster.writes(lambda: heir.apply(spec_of(f"t_{number}"))) == []  # noqa: B023
        assert {kind for kind, _ in cluster.there(f"t_{number}")} == wanted


@pytest.mark.parametrize("fault", [FAULTS["500"], FAULTS["broken off once done"]])
def test_removal_is_made_good_too(cluster, fault):
    """Whichever deletion fails, in the end nothing is left, nothing cluster-wide either."""
    driver = cluster.driver()
    for number in (1, 2, 3):
        tenant = f"t_{number}"
        driver.apply(spec_of(tenant))
        home = place(tenant, "polyolo").namespace
        cluster.server.fault = at_write(number, home, fault)

        def gone(tenant=tenant) -> bool:
            with suppress(OSError):
                driver.remove(tenant)
            return tenant not in driver.observe()

        until(gone)
        cluster.server.fault = lambda _: None
        until(lambda tenant=tenant: cluster.there(tenant) == {})
    assert cluster.server.do(lambda: dict(cluster.server.store.objects)) == {}


def test_a_server_that_hangs_costs_seconds_not_hours(cluster):
    """No answer within the time allowed is an OSError; the next call goes on."""
    driver = cluster.driver(answer_s=0.2)
    cluster.server.fault = lambda asked: Fault(status=500, wait_s=1.0) if asked.number else None
    started = time.monotonic()
    with pytest.raises(OSError, match="does not answer"):
        driver.apply(spec_of("t_a"))
    assert time.monotonic() - started < 5
    cluster.server.fault = lambda _: None
    driver.apply(spec_of("t_a"))


@pytest.mark.parametrize("trouble", ["dropped", "compacted", "away"])
def test_nothing_is_missed_while_watches_are_down(cluster, trouble):
    """What happens while no watch stands is found by the next one, or by listing again."""
    driver = cluster.driver()
    driver.apply(spec_of("t_a"))
    assert driver.wait(0) == set()
    home = place("t_a", "polyolo").namespace
    if trouble == "away":
        cluster.server.fault = lambda asked: Fault(status=503) if not asked.number else None
    cluster.server.drop_watches()

    def work() -> None:
        store = cluster.server.store
        store.delete(("networkpolicies.networking.k8s.io", home, "polyolo-deny-all"))
        if trouble == "compacted":
            store.forget_history()

    cluster.server.do(work)
    if trouble == "away":
        time.sleep(0.3)  # long enough for a few tries; whether they were made does not matter
        cluster.server.fault = lambda _: None
    assert driver.wait(10) == {"t_a"}
    written = cluster.writes(lambda: driver.apply(spec_of("t_a")))
    assert written == [
        f"PATCH /apis/networking.k8s.io/v1/namespaces/{home}/networkpolicies/polyolo-deny-all"
    ]


@pytest.mark.parametrize("scaling", Scaling)
def test_the_steady_state_writes_nothing(scaling):
    """Twelve tenants, awake, asleep and scaled: applied again by another process, 0 writes."""
    without = frozenset() if scaling is Scaling.KEDA else KEDA | MONITORING
    with clustered(without=without, settings=replace(SETTINGS, scaling=scaling)) as cluster:
        specs = [
            spec_of(f"t_{n}", replicas=n % 3, max_replicas=4 if n % 2 else 0) for n in range(12)
        ]
        driver = cluster.driver()
        for one in specs:
            driver.apply(one)
        driver.close()
        heir = cluster.driver()

        def work() -> None:
            for one in specs:
                heir.apply(one)

        assert cluster.writes(work) == []
        phases = {status.phase for status in heir.observe().values()}
        assert phases == {Phase.ASLEEP, Phase.STARTING}
