"""Keep drawn boards on disk and hand out augmented batches, so that training need not wait."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from boards import PAD, draw_board, letterbox
from layout import INPUT
from numpy.lib.format import open_memmap

MOST = 12  # rows kept for each board's defects; draw_board makes fewer


def draw_share(path: Path, first: int, rows: range) -> None:
    """Draw a share of the cache in place: row ``i`` becomes the board of seed ``first + i``."""
    cv2.setNumThreads(1)
    images = open_memmap(path.with_suffix(".images.npy"), "r+")
    labels = open_memmap(path.with_suffix(".labels.npy"), "r+")
    for i in rows:
        image, boxes, kinds = draw_board(first + i)
        images[i], scale = letterbox(image)
        labels[i, : len(kinds), 0] = kinds
        labels[i, : len(kinds), 1:] = boxes * scale


def cache_boards(work: Path, first: int, count: int, jobs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boards of seeds ``first..first + count - 1``, drawing them once.

    Images are uint8 [count, 416, 416, 3] BGR; labels float32 [count, MOST, 5] as class, xyxy in
    pixels, with class -1 in unused rows. Both are memory maps under ``work``.
    """
    path = work / f"boards-{first}-{count}"
    done = path.with_suffix(".done")
    names = [path.with_suffix(f".{part}.npy") for part in ("images", "labels")]
    if not done.exists():
        work.mkdir(parents=True, exist_ok=True)
        open_memmap(names[0], "w+", np.uint8, (count, INPUT, INPUT, 3))
        open_memmap(names[1], "w+", np.float32, (count, MOST, 5))[:] = [-1, 0, 0, 0, 0]
        with ProcessPoolExecutor(jobs) as pool:
            shares = [range(i, count, jobs) for i in range(jobs)]
            list(pool.map(draw_share, [path] * jobs, [first] * jobs, shares))
        done.touch()
    return np.load(names[0], "r"), np.load(names[1], "r")


def augment(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the board turned, mirrored, moved and relit, none of which changes a defect's class.

    Takes and returns uint8 [416, 416, 3] and float32 [MOST, 5]. A box that loses more than half
    its area to the edge becomes unused.
    """
    label = label.copy()
    boxes = label[:, 1:]
    for _ in range(int(rng.integers(4))):  # a quarter anticlockwise: (x, y) to (y, side - x)
        image = np.rot90(image)
        x0, y0, x1, y1 = boxes.T.copy()
        boxes[:] = np.stack([y0, INPUT - x1, y1, INPUT - x0], axis=1)
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes[:, [0, 2]] = INPUT - boxes[:, [2, 0]]
    scale = rng.uniform(0.9, 1.2)
    shift = rng.uniform(-24, 24, 2) + (1 - scale) * INPUT / 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    image, size = np.ascontiguousarray(image), (INPUT, INPUT)
    image = cv2.warpAffine(image, matrix, size, borderValue=(PAD, PAD, PAD))
    moved = boxes * scale + np.tile(shift, 2)
    boxes[:] = np.clip(moved, 0, INPUT)
    area, whole = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, moved))
    label[area < 0.5 * whole, 0] = -1
    gain, lift = rng.uniform(0.8, 1.2), max(rng.uniform(-15, 15), 0)
    return cv2.convertScaleAbs(image, alpha=gain, beta=lift), label


def batches(
    images: np.ndarray, labels: np.ndarray, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches without end: uint8 [size, 416, 416, 3] and float32 [size, MOST, 5]."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - size + 1, size):
            rows = [augment(rng, images[i], labels[i]) for i in order[start : start + size]]
            yield np.stack([image for image, _ in rows]), np.stack([label for _, label in rows])
