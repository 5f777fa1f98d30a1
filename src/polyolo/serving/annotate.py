"""Draws detections into a picture and encodes it: the answer for people, on request only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # ships stubs, but no py.typed
from numpy.typing import NDArray

from polyolo.errors import InvalidValueError
from polyolo.types import Detections

_JPEG_QUALITY = 90
"""0 to 100; 90 keeps thin lines and small letters clean at about 1.5 bits a pixel."""
_PNG_LEVEL = 1
"""zlib's fastest: a quarter larger than its default, in a fourth of the time."""
_GOLDEN = 0.618033988749895
"""Hues that are this fraction of the circle apart stay apart for any number of classes."""


def annotate(
    image: NDArray[np.uint8], detections: Detections, names: Sequence[str]
) -> NDArray[np.uint8]:
    """Return a copy of the picture with a box and a label for each detection.

    image: uint8 [H,W,3] BGR. names: class names by id. Lines and letters grow with the picture;
    the most confident detection is drawn last, on top.
    """
    canvas = image.copy()
    line = max(2, round(max(image.shape[:2]) / 400))
    for index in reversed(range(len(detections))):
        class_id = int(detections.class_id[index])
        name = names[class_id] if class_id < len(names) else f"class_{class_id}"
        box = [round(float(side)) for side in detections.xyxy[index]]
        colour = _colour(class_id)
        cv2.rectangle(canvas, (box[0], box[1]), (box[2], box[3]), colour, line)
        _label(canvas, f"{name} {detections.confidence[index]:.2f}", (box[0], box[1]), colour, line)
    return canvas


def encode(image: NDArray[np.uint8], media_type: str) -> bytes:
    """Return the picture, uint8 [H,W,3] BGR, as image/jpeg or image/png.

    Raises InvalidValueError for a picture that is too long for JPEG, ValueError for another media
    type, which is a defect of the caller.
    """
    if media_type == "image/jpeg":
        if max(image.shape[:2]) > _LONGEST_JPEG_SIDE:
            raise InvalidValueError(
                f"a JPEG has at most {_LONGEST_JPEG_SIDE} pixels a side, the picture has more; "
                "ask for image/png instead"
            )
        image = np.ascontiguousarray(image)
        return bytes(simplejpeg.encode_jpeg(image, _JPEG_QUALITY, "BGR", "420"))
    if media_type == "image/png":
        return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])[1].tobytes()
    raise ValueError(f"pictures are encoded as JPEG or PNG, not as {media_type}")


def _label(
    canvas: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    colour: tuple[int, int, int],
    line: int,
) -> None:
    """Write a label above the point, or below it where there is no room, within the picture."""
    # One line; and no half of a surrogate pair, which ends OpenCV 5.0 with a segmentation fault.
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    height, width = canvas.shape[:2]
    scale = 0.2 * line + 0.1
    thick = max(1, line // 2)
    (wide, high), baseline = cv2.getTextSize(text, _FONT, scale, thick)
    full = high + baseline + line
    left = max(0, min(at[0], width - wide))
    top = at[1] - full if at[1] >= full else min(at[1], max(0, height - full))
    cv2.rectangle(canvas, (left, top), (left + wide, top + full), colour, cv2.FILLED)
    bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]  # ITU-R BT.601
    ink = (0, 0, 0) if bright > 127 else (255, 255, 255)
    cv2.putText(canvas, text, (left, top + high + line // 2), _FONT, scale, ink, thick, cv2.LINE_AA)


def _colour(class_id: int) -> tuple[int, int, int]:
    """Return a class's colour, B, G, R; the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1.0, 0.85, 0.95)
    return round(255 * blue), round(255 * green), round(255 * red)


_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LONGEST_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
