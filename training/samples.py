"""Draw the sample boards that ship beside the weights, with their true boxes.

python samples.py ../src/polyolo/models/samples
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
from boards import draw_board
from defects import NAMES

# never trained on; chosen so that every colour of board and every class is among them
SEEDS = (9_100_012, 9_100_011, 9_100_001, 9_100_056, 9_100_044, 9_100_059)


def write_samples(folder: Path) -> None:
    """Write ``board-1.jpg`` and so on, 640 to 800 pixels a side, and ``truth.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    boards = []
    for number, seed in enumerate(SEEDS, start=1):
        image, boxes, kinds = draw_board(seed, low=640, high=800)
        name, (height, width) = f"board-{number}.jpg", image.shape[:2]
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, 82])
        defects = [
            json.dumps({"class": NAMES[kind], "xyxy": box})
            for box, kind in zip(boxes.astype(float).round(1).tolist(), kinds, strict=True)
        ]
        about = json.dumps({"file": name, "seed": seed, "width": width, "height": height})
        boards.append(about[:-1] + ', "defects": [\n  ' + ",\n  ".join(defects) + "]}")
    (folder / "truth.json").write_text("[\n" + ",\n".join(boards) + "\n]\n")


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    write_samples(parser.parse_args().folder)


if __name__ == "__main__":
    main()
