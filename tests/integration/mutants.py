"""Looks into damaged copies of a model, one after the other, in the process that it is started as.

`python mutants.py SEED FIRST COUNT < /dev/null` builds each mutant from the model in the
descriptor 3 and prints a line for each: its number and what came of it. A process that a mutant
ends has printed all those before it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path


def mutant(model: bytes, seed: int, number: int) -> bytes:
    """Return a model with something cut off, or up to 20 bits, bytes or stretches changed."""
    draw = random.Random(f"{seed} {number}")
    if draw.random() < 0.2:
        return model[: draw.randrange(len(model))]
    changed = bytearray(model)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        at = draw.randrange(len(changed))
        match draw.randrange(5):
            case 0 | 1:
                changed[at] ^= 1 << draw.randrange(8)
            case 2:
                changed[at] = draw.randrange(256)
            case 3:
                del changed[at : at + draw.randrange(1, 40)]
            case 4:
                other = draw.randrange(len(changed))
                changed[at:at] = changed[other : other + draw.randrange(1, 40)]
    return bytes(changed)


def main(descriptor: int, seed: int, first: int, count: int) -> None:
    """Print what came of each mutant."""
    from polyolo.errors import PolyoloError
    from polyolo.serving.inspect import describe

    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what engines print is no answer
    model = Path(f"/proc/self/fd/{descriptor}").read_bytes()
    for number in range(first, first + count):
        try:
            describe(mutant(model, seed, number), ())
        except PolyoloError as error:
            print(number, "refused", ascii(error.detail), file=answer)
        except MemoryError:
            print(number, "refused for memory", file=answer)
        else:
            print(number, "accepted", file=answer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
