"""Thousands of damaged pictures at a real runtime: no 5xx, no restart, memory flat."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.runtime import Runtime
from tests.unit import graphs
from tests.unit.test_image_fuzz import PICTURES, damage

EACH = 1250
SEEDS = (11, 12, 13, 14)


@pytest.fixture
def runtime():
    runtime = Runtime()
    runtime.add("small", graphs.graph({"output0": graphs.yolov8()}))
    try:
        runtime.start()
        yield runtime
    finally:
        runtime.close()


def test_five_thousand_damaged_pictures(runtime: Runtime):
    """Each is answered with 200 or 4xx by the process that was there before, and leaves nothing."""

    def send(seed: int) -> Counter[int]:
        chance = random.Random(seed)
        return Counter(
            runtime.client.post(
                "/v1/detect", content=damage(chance.choice(PICTURES), chance)
            ).status_code
            for _ in range(EACH)
        )

    send(1)  # every kind of picture has been seen once: what is kept now is kept for good
    before, family = runtime.memory(), runtime.workers()
    with ThreadPoolExecutor(len(SEEDS)) as senders:
        seen = sum(senders.map(send, SEEDS), Counter())
    assert seen.total() == EACH * len(SEEDS)
    assert set(seen) <= {200, 400, 413, 415, 422}, seen
    assert seen[200] > 500
    assert seen[422] > 500
    assert runtime.workers() == family
    assert runtime.memory() < before + 40 * 2**20
