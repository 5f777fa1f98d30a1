"""Route a board: pads, vias, traces and ground pours on a grid, before anything is drawn.

The grid's half steps are tracked too: node ``(x, y)`` lives at ``(2x, 2y)`` and the middle of an
edge at an odd coordinate. Both diagonals of a cell share one middle, so "is this place free" also
answers "would two traces cross". Lengths are in units ``u``: one ``u`` is one pixel once the
board's long side is scaled to 416.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

INPUT = 416  # side of the detector's input, in pixels

Half = tuple[int, int]  # a place on the half-step grid


@dataclass(slots=True, kw_only=True)
class Pad:
    """Hold one land: its place, size in pixels, outline and whether it is drilled."""

    at: Half
    radius: float
    outline: str  # "round", "square", "flat" or "tall"; the last two are for surface mounting
    via: bool = False

    @property
    def drilled(self) -> bool:
        """Tell whether a sound board has a hole here."""
        return self.outline in ("round", "square")


@dataclass(slots=True, kw_only=True)
class Layout:
    """Hold the routed board before it is drawn."""

    KEPT_FREE: ClassVar[int] = -1  # the owner of places for mounting holes

    origin: np.ndarray  # [2] pixels
    pitch: float  # pixels between nodes
    nodes: tuple[int, int]
    unit: float  # pixels per u
    owner: dict[Half, int] = field(default_factory=dict)  # the net of each occupied half step
    pads: list[Pad] = field(default_factory=list)
    traces: list[tuple[list[Half], float]] = field(default_factory=list)  # path, width in pixels
    pours: list[tuple[int, int, int, int]] = field(default_factory=list)  # xyxy in half steps

    def pixel(self, at: Half) -> np.ndarray:
        """Return the place in pixels, float64 [2]."""
        return self.origin + np.asarray(at, np.float64) * self.pitch / 2

    def poured(self, at: Half) -> bool:
        """Tell whether a ground pour covers this place or touches it."""
        x, y = at
        return any(
            x0 <= x + 1 and x - 1 <= x1 and y0 <= y + 1 and y - 1 <= y1
            for x0, y0, x1, y1 in self.pours
        )


def octilinear(rng: np.random.Generator, start: Half, end: Half) -> list[Half]:
    """Return the half steps of a straight, 45°, straight path between two nodes, with both."""
    delta = np.subtract(end, start)
    step = np.sign(delta)
    diagonal = int(np.abs(delta).min())
    straight = int(np.abs(delta).max()) - diagonal
    along = step * (np.abs(delta) == np.abs(delta).max()) if straight else step
    first = 2 * int(rng.integers(0, straight // 2 + 1))
    moves = [along] * first + [step] * diagonal + [along] * (straight - first)
    places = np.cumsum([np.asarray(start), *moves], axis=0)
    return [(int(x), int(y)) for x, y in places]


def lay_trace(layout: Layout, path: list[Half], width: float) -> bool:
    """Occupy a path whose inner places are free, joining the nets at its ends; return whether."""
    if len(path) < 5 or any(at in layout.owner for at in path[1:-1]):
        return False
    nets = {layout.owner[at] for at in (path[0], path[-1]) if at in layout.owner}
    net = min(nets) if nets else len(layout.traces) + 10_000  # pads number their nets from 1
    for at, old in layout.owner.items():
        if old in nets:
            layout.owner[at] = net
    layout.owner.update(dict.fromkeys(path, net))
    layout.traces.append((path, width))
    return True


def place_part(rng: np.random.Generator, layout: Layout) -> None:
    """Place one part's pads on free nodes: a header, a dual row, or a surface-mount pair."""
    kind = rng.choice(["header", "dual", "smd"], p=[0.4, 0.25, 0.35])
    pins = int(rng.integers(2, 7))
    cells = [(0, 0), (2, 0)] if kind == "smd" else [(i, 0) for i in range(pins)]
    if kind == "dual":
        cells += [(i, 3) for i in range(pins)]
    turned = bool(rng.integers(2))
    cells = [(y, x) if turned else (x, y) for x, y in cells]
    corner = rng.integers(0, layout.nodes, 2)
    places = [(2 * int(corner[0] + x), 2 * int(corner[1] + y)) for x, y in cells]
    limit = 2 * (np.asarray(layout.nodes) - 1)
    around = [(x + i, y + j) for x, y in places for i in (-2, 0, 2) for j in (-2, 0, 2)]
    if (np.asarray(places) > limit).any() or any(at in layout.owner for at in around):
        return
    radius = layout.pitch * rng.uniform(0.34, 0.41)
    first = "square" if rng.random() < 0.5 else "round"
    for i, at in enumerate(places):
        mounted = "flat" if turned else "tall"
        outline = mounted if kind == "smd" else first if i == 0 else "round"
        layout.pads.append(Pad(at=at, radius=radius, outline=outline))
        layout.owner[at] = len(layout.pads)


def lay_bus(rng: np.random.Generator, layout: Layout) -> None:
    """Lay two to five parallel traces that end in vias."""
    forth = bool(rng.integers(2))
    start, end = (rng.integers(0, layout.nodes, 2) * 2 for _ in range(2))
    wide = abs(end[0] - start[0]) >= abs(end[1] - start[1])
    lane = np.array([0, 2] if wide else [2, 0]) * (1 if forth else -1)
    path = np.asarray(octilinear(rng, tuple(start), tuple(end)))
    width = layout.unit * rng.uniform(6, 8)
    limit = 2 * (np.asarray(layout.nodes) - 1)
    for i in range(int(rng.integers(2, 6))):
        moved = path + lane * i
        if (moved < 0).any() or (moved > limit).any():
            break
        places = [(int(x), int(y)) for x, y in moved]
        ends = places[0], places[-1]
        if any(at in layout.owner for at in ends) or not lay_trace(layout, places, width):
            break
        radius = layout.pitch * 0.27
        layout.pads += [Pad(at=at, radius=radius, outline="round", via=True) for at in ends]


def lay_out(rng: np.random.Generator, width: int, height: int) -> Layout:
    """Return a routed board for an image of ``width`` by ``height`` pixels."""
    unit = max(width, height) / INPUT
    pitch = unit * rng.uniform(19, 26)
    margin = unit * rng.uniform(12, 26)
    nodes = tuple(int((side - 2 * margin) // pitch) + 1 for side in (width, height))
    slack = np.array([width, height]) - (np.array(nodes) - 1) * pitch
    layout = Layout(origin=slack / 2, pitch=pitch, nodes=nodes, unit=unit)
    for x in (0, nodes[0] - 1):
        for y in (0, nodes[1] - 1):
            layout.owner[2 * x, 2 * y] = Layout.KEPT_FREE
    area = nodes[0] * nodes[1]
    for _ in range(int(area * rng.uniform(0.12, 0.24))):
        place_part(rng, layout)
    for _ in range(int(rng.integers(6, 16))):
        lay_bus(rng, layout)
    lands = [pad.at for pad in layout.pads if not pad.via]
    for i in rng.permutation(len(lands)):
        distance = np.abs(np.subtract(lands, lands[i])).max(axis=1)
        for j in np.argsort(distance + rng.uniform(0, 8, len(lands)))[1:5]:
            if layout.owner[lands[i]] == layout.owner[lands[j]]:
                continue
            path = octilinear(rng, lands[i], lands[j])
            if lay_trace(layout, path, unit * rng.uniform(6, 9)):
                break
    if rng.random() < 0.4:
        span = rng.integers(3, 8, 2) * 2
        x, y = (int(rng.integers(0, max(1, 2 * n - s))) for n, s in zip(nodes, span, strict=True))
        layout.pours.append((x, y, x + int(span[0]), y + int(span[1])))
    return layout
