"""Stands in for ultralytics: reads a checkpoint as PyTorch does, and exports the bytes it holds.

Installed as the package `ultralytics` where a converter's image would have it.
"""

import pickle
from pathlib import Path


class YOLO:
    def __init__(self, name):
        with Path(name).open("rb") as file:
            self.held = pickle.load(file)

    def export(self, *, format, simplify, verbose):  # noqa: A002  # as the library calls it
        if not isinstance(self.held, bytes):
            raise TypeError("there is no model in it")
        path = Path.cwd() / f"model.{format}"
        path.write_bytes(self.held)
        return str(path)
