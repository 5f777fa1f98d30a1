"""Draw circuit boards with labelled defects, so that the weights need nobody's photographs."""

from __future__ import annotations

import cv2
import numpy as np
from defects import NAMES, Defect, add_defects
from layout import INPUT, Layout, Pad, lay_out

PAD = 114  # grey level of the letterbox border
SHIFT = 4  # fractional bits of OpenCV's drawing coordinates

# all BGR; a solder mask comes with how often boards have it
SOLDER_MASKS = {(45, 92, 22): 0.55, (120, 62, 18): 0.17, (32, 26, 128): 0.15, (36, 34, 33): 0.13}
FINISHES = ((92, 182, 214), (188, 194, 198), (84, 132, 196))  # gold, tin, bare copper
BACKDROPS = ((38, 38, 40), (205, 208, 210), (120, 126, 130), (60, 84, 110))


def fixed(points: np.ndarray) -> np.ndarray:
    """Return points as OpenCV's fixed-point coordinates, int32 [N, 1, 2]."""
    return np.round(np.asarray(points).reshape(-1, 1, 2) * (1 << SHIFT)).astype(np.int32)


def fill(canvas: np.ndarray, points: np.ndarray, level: int) -> None:
    """Fill a polygon given in pixels, with smooth edges, in place."""
    cv2.fillPoly(canvas, [fixed(points)], level, cv2.LINE_AA, SHIFT)


def disc(canvas: np.ndarray, centre: np.ndarray, radius: float, level: int) -> None:
    """Fill a disc given in pixels, with smooth edges, in place."""
    x, y = fixed(centre)[0, 0]
    cv2.circle(canvas, (int(x), int(y)), int(radius * (1 << SHIFT)), level, -1, cv2.LINE_AA, SHIFT)


def outline(pad: Pad) -> np.ndarray:
    """Return the corners of a pad that is not round, about its centre, [4, 2] pixels."""
    half = {"square": (1, 1), "tall": (1, 0.62), "flat": (0.62, 1)}[pad.outline]
    return pad.radius * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half


def draw_copper(layout: Layout, defects: list[Defect], shape: tuple[int, int]) -> np.ndarray:
    """Return the traces, pours and defects, uint8 [H, W] as coverage 0..255."""
    copper = np.zeros(shape, np.uint8)
    for path, width in layout.traces:
        points = fixed(np.array([layout.pixel(at) for at in path]))
        cv2.polylines(copper, [points], False, 255, max(2, round(width)), cv2.LINE_AA, SHIFT)
    draw_lands(layout, copper)
    for defect in defects:
        if defect.removed is not None:
            fill(copper, defect.removed, 0)
        if defect.added is not None:
            fill(copper, defect.added, 255)
    for x0, y0, x1, y1 in layout.pours:
        gap = 2 * round(layout.unit * 3.5) + 1
        clear = cv2.dilate(copper, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap)))
        region = np.zeros(shape, np.uint8)
        corners = [layout.pixel(at) for at in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        fill(region, np.array(corners), 255)
        copper = np.maximum(copper, np.minimum(region, 255 - clear))
    return copper


def draw_lands(layout: Layout, canvas: np.ndarray) -> None:
    """Draw every pad without its hole, in place."""
    for pad in layout.pads:
        if pad.outline == "round":
            disc(canvas, layout.pixel(pad.at), pad.radius, 255)
        else:
            fill(canvas, layout.pixel(pad.at) + outline(pad), 255)


def draw_mounts(layout: Layout, canvas: np.ndarray, size: float) -> None:
    """Draw a disc at every mounting hole, ``size`` pitches in radius, in place."""
    for at, net in layout.owner.items():
        if net == layout.KEPT_FREE:
            disc(canvas, layout.pixel(at), layout.pitch * size, 255)


def draw_drills(layout: Layout, defects: list[Defect], shape: tuple[int, int]) -> np.ndarray:
    """Return the holes, uint8 [H, W] as coverage 0..255."""
    drill = np.zeros(shape, np.uint8)
    undrilled = {id(defect.undrilled) for defect in defects}
    for pad in layout.pads:
        if pad.drilled and id(pad) not in undrilled:
            disc(drill, layout.pixel(pad.at), pad.radius * 0.52, 255)
    draw_mounts(layout, drill, 0.33)
    return drill


def draw_silk(rng: np.random.Generator, layout: Layout, shape: tuple[int, int]) -> np.ndarray:
    """Return part names and outlines near some pads, uint8 [H, W] as coverage 0..255."""
    silk = np.zeros(shape, np.uint8)
    font, thin = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(layout.unit * 0.8))
    for pad in layout.pads[:: int(rng.integers(3, 7))]:
        x, y = (layout.pixel(pad.at) + layout.pitch * rng.uniform(-1, 0.6, 2)).astype(int)
        text = f"{rng.choice(list('RCUQDJL'))}{rng.integers(1, 99)}"
        size = layout.unit * rng.uniform(0.25, 0.4)
        cv2.putText(silk, text, (int(x), int(y)), font, size, 255, thin, cv2.LINE_AA)
        if rng.random() < 0.6:
            near = layout.pixel(pad.at) - layout.pitch * 0.6
            far = near + layout.pitch * rng.uniform(1.2, 4, 2)
            start, end = fixed(np.array([near, far]))[:, 0].tolist()
            cv2.rectangle(silk, start, end, 255, thin, cv2.LINE_AA, SHIFT)
    return silk


def blend(
    image: np.ndarray, layer: np.ndarray, colour: np.ndarray, strength: float = 1.0
) -> np.ndarray:
    """Return the image [H, W, 3] with a colour laid over it where the layer covers it."""
    cover = layer[..., None].astype(np.float32) * np.float32(strength / 255)
    return image + cover * (np.asarray(colour, np.float32) - image)


def photograph(rng: np.random.Generator, image: np.ndarray, unit: float) -> np.ndarray:
    """Return a drawn board as uint8 photo: light, dust, blur, sensor noise and JPEG artefacts."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    tilt = rng.uniform(-0.22, 0.22, 2)
    light = 1 + tilt[0] * (xs - 0.5) + tilt[1] * (ys - 0.5)
    glare = np.exp(-((xs - rng.random()) ** 2 + (ys - rng.random()) ** 2) / rng.uniform(0.02, 0.2))
    light += rng.uniform(0, 0.25) * glare
    image = image * (light * rng.uniform(0.8, 1.2))[..., None]
    for _ in range(int(rng.integers(0, 12))):
        at = tuple(int(v) for v in rng.integers(0, (width, height)))
        cv2.circle(
            image,
            at,
            max(1, round(unit * rng.uniform(0.3, 0.9))),
            rng.uniform(20, 220, 3).tolist(),
            -1,
            cv2.LINE_AA,
        )
    image = cv2.GaussianBlur(image, (0, 0), unit * rng.uniform(0.25, 0.75))
    grain = rng.standard_normal((height, width), np.float32) * rng.uniform(1, 6)
    image = np.clip(image + grain[..., None], 0, 255).astype(np.uint8)
    packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))])[1]
    return cv2.imdecode(packed, cv2.IMREAD_COLOR)


def draw_board(
    seed: int, *, low: int = 480, high: int = 900, most: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one photo of a board and its defects; the same seed always gives the same board.

    Sides lie in ``low..high`` pixels; up to ``most`` defects. Returns the image as BGR uint8
    [H, W, 3], the boxes as float32 [N, 4] xyxy in pixels, and the class ids as int64 [N] into
    ``NAMES``.
    """
    rng = np.random.default_rng(seed)
    width = int(rng.integers(low, high + 1))
    height = int(np.clip(width * rng.uniform(0.7, 1.3), low, high))
    layout = lay_out(rng, width, height)
    defects = add_defects(rng, layout, int(rng.integers(0, most + 1)))
    shape = height, width
    copper, drill = draw_copper(layout, defects, shape), draw_drills(layout, defects, shape)
    land = np.zeros(shape, np.uint8)
    draw_lands(layout, land)
    draw_mounts(layout, land, 0.42)
    silk = np.where(land > 0, 0, draw_silk(rng, layout, shape)).astype(np.uint8)

    hue = rng.choice(list(SOLDER_MASKS), p=list(SOLDER_MASKS.values()))
    resist = np.clip(hue * rng.uniform(0.75, 1.25) + rng.uniform(-8, 8, 3), 5, 200)
    traced = np.clip(
        resist * rng.uniform(1.35, 1.7) + rng.uniform(22, 40) * np.array([0.7, 1.0, 0.9]), 0, 235
    )
    backdrop = np.array(BACKDROPS[rng.integers(len(BACKDROPS))]) * rng.uniform(0.8, 1.15)
    weave = cv2.resize(
        rng.standard_normal((height // 6 + 1, width // 6 + 1), np.float32), (width, height)
    )
    image = resist.astype(np.float32) + weave[..., None] * np.float32(rng.uniform(0.5, 3))
    image = blend(image, copper, traced)
    relief = copper.astype(np.float32) - cv2.warpAffine(
        copper, np.float32([[1, 0, 1], [0, 1, 1]]), (width, height)
    )
    image = image + relief[..., None] * np.float32(rng.uniform(0, 0.1))
    image = blend(
        image, land, np.array(FINISHES[rng.integers(len(FINISHES))]) * rng.uniform(0.85, 1.1)
    )
    image = blend(image, silk, (232, 236, 236), rng.uniform(0.7, 0.95))
    image = blend(image, drill, backdrop * 0.4)

    turn = cv2.getRotationMatrix2D(
        (width / 2, height / 2), rng.uniform(-3, 3), rng.uniform(0.95, 1.0)
    )
    image = cv2.warpAffine(
        image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=backdrop.tolist()
    )
    image = photograph(rng, image, layout.unit)

    boxes = np.zeros((len(defects), 4), np.float32)
    least = (
        14 * layout.unit
    )  # a box this wide keeps the defect's surroundings, which say what it is
    for box, defect in zip(boxes, defects, strict=True):
        turned = defect.extent @ turn[:, :2].T + turn[:, 2]
        centre = (turned.max(0) + turned.min(0)) / 2
        size = np.maximum(np.ptp(turned, axis=0) + 3 * layout.unit, least)
        box[:2], box[2:] = centre - size / 2, centre + size / 2
    np.clip(boxes, 0, np.tile([width, height], 2), out=boxes)
    return image, boxes, np.array([NAMES.index(defect.name) for defect in defects], np.int64)


def letterbox(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the image scaled into the top left of a grey uint8 [416, 416, 3], and the scale."""
    scale = INPUT / max(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    canvas = np.full((INPUT, INPUT, 3), PAD, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, scale
