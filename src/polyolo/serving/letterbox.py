"""Brings pictures to a graph's size and number format, and its boxes back to the pictures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polyolo.serving.heads import Fit, InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a picture lies in the tensor: pixel * scale + offset, by axis."""

    picture: tuple[int, int]
    """Height and width of the picture."""
    size: tuple[int, int]
    """Height and width that it takes in the tensor."""
    left: int
    top: int
    scale: tuple[float, float]
    """Of x and of y."""

    def back(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes [N,4] of the tensor's pixels in the picture's, clipped to the picture."""
        height, width = self.picture
        scale_x, scale_y = self.scale
        shift = np.array([self.left, self.top, self.left, self.top], np.float32)
        scale = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        most = np.array([width, height, width, height], np.float32)
        boxes: NDArray[np.float32] = (xyxy - shift) / scale
        return boxes.clip(np.float32(0), most)


def place(picture: tuple[int, int], spec: InputSpec) -> Placement:
    """Return where a picture of (height, width) lies in the tensor of `spec`.

    Rounds as the family's own code does, for boxes equal to its own to the third digit: Megvii
    cuts the fraction off (`preproc`), Ultralytics rounds, and splits an odd border so that the
    smaller half comes first (`LetterBox`).
    """
    height, width = picture
    into_height, into_width = spec.size
    if spec.fit is Fit.STRETCH:
        scale_x, scale_y = into_width / width, into_height / height
        return Placement(picture=picture, size=spec.size, left=0, top=0, scale=(scale_x, scale_y))
    scale = min(into_height / height, into_width / width)
    if spec.fit is Fit.TOP_LEFT:
        wide, high = int(width * scale), int(height * scale)
    else:
        wide, high = round(width * scale), round(height * scale)
    wide, high = max(1, wide), max(1, high)  # of a picture 10000 times as wide as high
    left = top = 0
    if spec.fit is Fit.CENTRE:
        left, top = (into_width - wide) // 2, (into_height - high) // 2
    return Placement(picture=picture, size=(high, wide), left=left, top=top, scale=(scale, scale))


class Letterbox:
    """Makes input tensors; keeps a buffer for each thread that calls it."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self._border = [
            np.float32(spec.pad) * np.float32(gain) + np.float32(offset)
            for gain, offset in zip(spec.gain, spec.offset, strict=True)
        ]
        # Fresh planes for each picture cost 0.07 ms (416 x 416) to 0.13 ms (640 x 640) more:
        # the kernel clears their pages.
        self._scratch = threading.local()

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], batch: int
    ) -> tuple[NDArray[Any], list[Placement]]:
        """Return the tensor of `batch` pictures and where each lies in it.

        pictures: uint8 [H,W,3] BGR, at most `batch` many; what is left stays black. Safe in any
        thread; the tensor is the caller's own.
        """
        spec = self.spec
        tensor = np.empty((batch, *spec.shape[1:]), spec.dtype)
        placements = []
        for picture, out in zip(pictures, tensor, strict=False):
            placement = place((picture.shape[0], picture.shape[1]), spec)
            high, wide = placement.size
            if (high, wide) != placement.picture:
                resized = cv2.resize(picture, (wide, high), interpolation=cv2.INTER_LINEAR)
                picture = np.asarray(resized, np.uint8)
            planes = out if spec.layout == "NCHW" else out.transpose(2, 0, 1)
            self._fill(planes, picture, placement)
            placements.append(placement)
        tensor[len(pictures) :] = 0
        return tensor, placements

    def _fill(self, planes: NDArray[Any], picture: NDArray[np.uint8], placement: Placement) -> None:
        """Write a resized picture [h,w,3] and its border into the planes [3,H,W]."""
        spec = self.spec
        high, wide = placement.size
        top, left = placement.top, placement.left
        bottom, right = top + high, left + wide
        split = self._planes(high, wide)
        cv2.split(picture, list(split))
        if spec.colour == "RGB":
            split = split[::-1]
        for plane, pixels, gain, offset, border in zip(
            planes, split, spec.gain, spec.offset, self._border, strict=True
        ):
            plane[:top] = border
            plane[bottom:] = border
            plane[top:bottom, :left] = border
            plane[top:bottom, right:] = border
            inside = plane[top:bottom, left:right]
            if gain == 1.0 and not offset:
                np.copyto(inside, pixels, casting="unsafe")
                continue
            np.multiply(pixels, np.float32(gain), out=inside, casting="unsafe")
            if offset:
                np.add(inside, np.float32(offset), out=inside, casting="unsafe")

    def _planes(self, high: int, wide: int) -> NDArray[np.uint8]:
        """Return this thread's buffer as [3,high,wide]; its content is anybody's."""
        size = 3 * high * wide
        buffer: NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._scratch.buffer = np.empty(
                3 * self.spec.size[0] * self.spec.size[1], np.uint8
            )
        return buffer[:size].reshape(3, high, wide)
