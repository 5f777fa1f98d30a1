"""Thousands of damaged pictures: only refusals come out, and no memory stays behind."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.errors import PolyoloError
from polyolo.serving.image import configure_opencv, decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from tests.unit.test_image import ALL

PICTURES = [*ALL.values()]
LIMITS = ImageLimits(max_pixels=4_000_000)  # else most of the time goes into clearing pages
EACH = 5000
SEEDS = (1, 2, 3, 4)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Set OpenCV up as a server does."""
    configure_opencv()


def damage(data, chance):
    """Return the picture with a few things wrong with it."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        # Half of the damage goes where the headers are: behind them most is only a wrong colour.
        at = chance.randrange(min(len(data), chance.choice((64, 700, len(data)))))
        match chance.randrange(8):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                data[at : at + 4] = chance.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"))
            case 3:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 16)))
            case 4:
                del data[at : at + chance.choice((1, 2, 16, 300))]
            case 5:
                del data[max(at, 20) :]
            case 6:
                other = chance.choice(PICTURES)
                start = chance.randrange(len(other))
                data[at : at + 64] = other[start : start + 64]
            case 7:
                data[at : at + 32] = data[at : at + 32] * 3
        if not data:
            break
    return bytes(data)


def answer(data):
    """Return the status that a client would get; anything but a refusal of ours is raised."""
    try:
        header = read_header(data, LIMITS)
        pixels = decode(data, header)
    except PolyoloError as refusal:
        return refusal.status
    assert pixels.shape == (header.height, header.width, 3)
    assert pixels.size <= 3 * LIMITS.max_pixels
    return 200


def resident():
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_damaged_pictures_are_refused_and_leave_nothing_behind():
    """Twenty thousand damaged pictures of every kind: answers 200 or 4xx at once, memory flat."""
    seen = Counter({200: 0, 400: 0, 413: 0, 415: 0, 422: 0})
    settled, slowest = 0, 0.0
    for seed in SEEDS:
        chance = random.Random(seed)
        for number in range(EACH):
            data = damage(chance.choice(PICTURES), chance)
            started = time.perf_counter()
            seen[answer(data)] += 1
            slowest = max(slowest, time.perf_counter() - started)
            if seed == SEEDS[0] and number == EACH // 2:
                settled = resident()
    assert set(seen) == {200, 400, 413, 415, 422}
    assert sum(seen.values()) >= 5000
    assert min(seen[200], seen[415], seen[422]) > 500, seen  # the damage is neither blind nor total
    assert seen[413] > 0, seen
    assert slowest < 1.0  # milliseconds here; a chunk that claimed 2 GB once took 10 s
    assert resident() - settled < 64 * 1024 * 1024


@given(st.binary(max_size=400), st.sampled_from(PICTURES), st.integers(0, 80))
def test_any_bytes_behind_any_beginning_are_answered(junk, picture, kept):
    """No beginning of a real header makes junk behind it anything but a refusal."""
    assert answer(picture[:kept] + junk) in {200, 400, 413, 415, 422}
