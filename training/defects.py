"""Damage a routed board in one of six ways, each a small change to its geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from layout import Half, Layout, Pad

NAMES = ("missing_hole", "mouse_bite", "open_circuit", "short", "spur", "spurious_copper")
TRIES = 200  # random places to try before a board goes without the defect it was to have


@dataclass(slots=True, kw_only=True)
class Defect:
    """Hold one defect: its extent in pixels [M, 2] and what it does to the copper or to a pad."""

    name: str
    extent: np.ndarray
    added: np.ndarray | None = None  # polygon of copper too many, in pixels
    removed: np.ndarray | None = None  # polygon of copper too few, in pixels
    undrilled: Pad | None = None


@dataclass(slots=True, kw_only=True)
class Site:
    """Hold a straight stretch of trace that can carry a defect, and a frame along and across it."""

    centre: np.ndarray  # [2] pixels
    axes: np.ndarray  # [2, 2], the unit vectors along the trace and towards one side
    width: float  # of the trace, in pixels
    reach: float  # to the centre of the next trace on that side, in pixels
    axial: bool  # whether it runs along the grid rather than across its cells
    own: int  # its net
    neighbour: int | None  # the net of the next place on that side
    clear: bool  # whether nothing lies between the two

    def pixels(self, points: list[list[float]] | np.ndarray) -> np.ndarray:
        """Return points [M, 2], given along and across the trace, in the board's pixels."""
        return self.centre + np.asarray(points) @ self.axes


def ragged(rng: np.random.Generator, rx: float, ry: float) -> np.ndarray:
    """Return an ellipse about the origin with an uneven rim, [14, 2] in the unit of its radii."""
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    rim = rng.uniform(0.82, 1.12, (14, 1))
    return rim * np.stack([np.cos(angle) * rx, np.sin(angle) * ry], axis=1)


def half_step(place: np.ndarray) -> Half:
    """Return a place as a key of ``Layout.owner``."""
    return int(place[0]), int(place[1])


def find_site(rng: np.random.Generator, layout: Layout) -> Site | None:
    """Return a random edge of a random trace, or None where it touches a land or a ground pour."""
    if not layout.traces:
        return None
    path, width = layout.traces[rng.integers(len(layout.traces))]
    i = 2 * int(rng.integers(0, len(path) // 2)) + 1  # an edge's middle: straight on both sides
    middle, step = np.asarray(path[i]), np.subtract(path[i], path[i - 1])
    if layout.poured(path[i]) or {path[i - 1], path[i + 1]} & {path[0], path[-1]}:
        return None
    side = np.array([-step[1], step[0]]) * (1 if rng.random() < 0.5 else -1)
    axial = 0 in step
    return Site(
        centre=layout.pixel(path[i])
        + step / np.linalg.norm(step) * layout.unit * rng.uniform(-1.5, 1.5),
        axes=np.stack([step, side]) / np.linalg.norm(step),
        width=width,
        reach=layout.pitch if axial else layout.pitch / np.sqrt(2),
        axial=axial,
        own=layout.owner[path[i]],
        neighbour=layout.owner.get(half_step(middle + side * (2 if axial else 1))),
        clear=not axial or half_step(middle + side) not in layout.owner,
    )


def miss_hole(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Leave a pad without its drill."""
    drilled = [pad for pad in layout.pads if pad.drilled and not pad.via]
    if not drilled:
        return None
    pad = drilled[rng.integers(len(drilled))]
    corners = layout.pixel(pad.at) + pad.radius * np.array([[-1, 1], [1, -1]])
    return Defect(name="missing_hole", extent=corners, undrilled=pad)


def bite(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Bite half a disc out of a trace's edge."""
    site = find_site(rng, layout)
    if site is None:
        return None
    size = site.width * rng.uniform(0.5, 0.75), site.width * rng.uniform(0.5, 0.7)
    shape = site.pixels(ragged(rng, *size) + np.array([0, site.width / 2]))
    return Defect(name="mouse_bite", extent=shape, removed=shape)


def cut(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Cut a trace, a little askew."""
    site = find_site(rng, layout)
    if site is None:
        return None
    gap = max(4.5 * layout.unit, site.width * rng.uniform(0.6, 1.2)) / 2
    slant, edge = site.width * rng.uniform(-0.2, 0.2), site.width / 2 + layout.unit
    rim = np.array([[slant - gap, -1], [slant + gap, -1], [gap - slant, 1], [-gap - slant, 1]])
    return Defect(
        name="open_circuit",
        extent=site.pixels(rim * [1, edge]),
        removed=site.pixels(rim * [1, edge + layout.unit]),
    )


def bridge(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Join a trace to a neighbour of another net."""
    site = find_site(rng, layout)
    if site is None or site.neighbour in (None, site.own, layout.KEPT_FREE) or not site.clear:
        return None
    half, waist = site.width * rng.uniform(0.3, 0.55), rng.uniform(0.7, 1)
    thin, far = half * waist, site.reach
    rim = [[-half, 0], [half, 0], [thin, far / 2], [half, far], [-half, far], [-thin, far / 2]]
    shape = site.pixels(rim)
    return Defect(name="short", extent=shape, added=shape)


def spike(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Grow a spike from a trace's edge that stops short of its neighbour."""
    site, u = find_site(rng, layout), layout.unit
    if site is None or (not site.axial and site.neighbour is not None):
        return None
    length = min(u * rng.uniform(7, 12), site.reach - site.width - 3 * u)
    half, lean = site.width * rng.uniform(0.3, 0.5), u * rng.uniform(-2.5, 2.5)
    if length < 6 * u:
        return None
    right, left = half * 0.35 + lean, lean - half * 0.3
    rim = [[-half, 0], [half, 0], [right, length * 0.75], [lean, length], [left, length * 0.8]]
    shape = site.pixels(np.array(rim) + np.array([0, site.width / 2 - 0.5 * u]))
    return Defect(name="spur", extent=shape, added=shape)


def splash(rng: np.random.Generator, layout: Layout) -> Defect | None:
    """Leave a blob of copper where nothing is near."""
    at = half_step(rng.integers(0, layout.nodes) * 2)
    around = [(at[0] + i, at[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    if layout.poured(at) or any(place in layout.owner for place in around):
        return None
    size = layout.unit * rng.uniform(5, 8, 2)
    centre = layout.pixel(at) + rng.uniform(-1.5, 1.5, 2) * layout.unit
    shape = centre + ragged(rng, *size)
    return Defect(name="spurious_copper", extent=shape, added=shape)


MAKERS = (miss_hole, bite, cut, bridge, spike, splash)  # in the order of NAMES


def add_defects(rng: np.random.Generator, layout: Layout, count: int) -> list[Defect]:
    """Return up to ``count`` defects, classes drawn evenly, none within 6 u of another."""
    defects: list[Defect] = []
    for kind in rng.integers(0, len(NAMES), count):
        for _ in range(TRIES):
            defect = MAKERS[kind](rng, layout)
            if defect is None:
                continue
            low, high = (
                defect.extent.min(0) - 6 * layout.unit,
                defect.extent.max(0) + 6 * layout.unit,
            )
            taken = [(other.extent.min(0), other.extent.max(0)) for other in defects]
            if all((low > top).any() or (high < bottom).any() for bottom, top in taken):
                defects.append(defect)
                break
    return defects
