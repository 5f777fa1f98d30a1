"""Takes without end what a runtime may have only so much of: run by the driver as a runtime.

Which of them, the environment says: BOMB. Needs nothing installed.
"""

import os
import sys
import time
from pathlib import Path

IO = Path(sys.argv[sys.argv.index("--socket") + 1]).parent
SCRATCH = Path(os.environ["TMPDIR"])


def forks():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


def takes_memory():
    held = []
    while True:
        held.append(bytearray(1 << 20))


def writes():
    """To its log, and wherever else a file can be made."""
    count = 0
    while True:
        count += 1
        for place in (IO, SCRATCH, Path()):
            try:
                with (place / f"file{count}").open("wb") as file:
                    file.write(bytes(1 << 20))
            except OSError:
                continue
        try:
            os.write(1, bytes(1 << 20))
        except OSError:
            time.sleep(0.01)


def spins():
    os.fork()
    os.fork()
    while True:
        pass


BOMBS = {work.__name__: work for work in (forks, takes_memory, writes, spins)}
BOMBS[os.environ["BOMB"]]()
