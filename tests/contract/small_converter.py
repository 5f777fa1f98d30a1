"""Converts for tests: reads a pickle as PyTorch does, and writes the bytes that it holds.

`python small_converter.py INPUT OUTPUT`. Reading the pickle is the attack; there is no other.
"""

import pickle
import sys
from pathlib import Path

source, target = sys.argv[1:]
with Path(source).open("rb") as file:
    found = pickle.load(file)
if isinstance(found, str):
    found = found.encode()
if not isinstance(found, bytes):
    print('{"refused": "there is no model in it"}')
    sys.exit(1)
with Path(target).open("r+b") as file:
    file.write(found)
