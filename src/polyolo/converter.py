"""Turns a YOLO's .pt file into ONNX: a program for another Python, that of the operator's choice.

`python converter.py INPUT OUTPUT`, in an environment in which the operator has installed
ultralytics. polyolo never imports this file and never depends on what it imports. A .pt file is a
program: whoever runs this does so in a sandbox (see `polyolo.control.conversion`), in a directory
of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path


def main(source: str, target: str) -> int:
    """Convert a file and return the exit status; what failed is told on stdout as JSON."""
    here = Path.cwd()
    # Nothing is looked for, fetched or installed, whatever the file asks for.
    os.environ |= {
        "HOME": str(here),
        "YOLO_CONFIG_DIR": str(here),
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
    }
    checkpoint = here / "model.pt"  # the library goes by the name
    shutil.copyfile(source, checkpoint)
    try:
        from ultralytics import YOLO  # the operator's choice, never ours
    except ImportError:
        return _refused("the converter's environment has no ultralytics; ask the operator for it")
    try:
        exported = YOLO(str(checkpoint)).export(format="onnx", simplify=False, verbose=False)
        with Path(exported).open("rb") as onnx, Path(target).open("r+b") as out:
            shutil.copyfileobj(onnx, out, 1 << 20)
    except Exception as error:  # noqa: BLE001  # whatever it is, its owner is told
        return _refused(f"{type(error).__name__}: {error}")
    return 0


def _refused(reason: str) -> int:
    print(json.dumps({"refused": reason[:500]}), flush=True)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
