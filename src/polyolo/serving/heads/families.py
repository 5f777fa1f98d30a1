"""The families that can be served: how each one's pictures go in and its boxes come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from polyolo.serving.heads.head import Fit
from polyolo.serving.heads.picks import Kind

_BYTE = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family is shown as it was in training, and the outputs that it gives."""

    kinds: tuple[Kind, ...] = ("single",)
    """The outputs that it may give beside `counted`: NMS may be put inside of any."""
    extra: int | None = None
    """Columns of a single output that are not class scores; None: [B,M,6] with labels."""
    classes_in: Literal[1, 2] = 2
    """Dimension of a single output that holds them."""
    fit: Fit = Fit.CENTRE
    colour: Literal["BGR", "RGB"] = "RGB"
    gain: tuple[float, float, float] = _BYTE
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    overlaps: bool = True
    """Whether NMS must follow, unless it is inside the graph."""


FAMILIES: Mapping[str, Family] = {
    "yolov5": Family(extra=5),
    "yolov6": Family(extra=5),
    "yolov8": Family(extra=4, classes_in=1),
    "yolov10": Family(overlaps=False),
    "yolox": Family(extra=5, fit=Fit.TOP_LEFT, colour="BGR", gain=(1.0, 1.0, 1.0)),
    "yolo-nas": Family(kinds=("pair",)),
    "rt-detr": Family(
        kinds=("single", "pair", "labelled"), extra=4, fit=Fit.STRETCH, overlaps=False
    ),
    "d-fine": Family(kinds=("pair", "labelled"), fit=Fit.STRETCH, overlaps=False),
    # ImageNet's mean and deviation for R, G, B (torchvision): (pixel / 255 - mean) / deviation
    "rf-detr": Family(
        kinds=("pair",),
        fit=Fit.STRETCH,
        gain=(1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225),
        offset=(-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
        overlaps=False,
    ),
    "nms": Family(kinds=(), overlaps=False),
}
"""By the name that `family` takes."""

_ALIKE = {
    "yolov7": "yolov5",
    "yolov9": "yolov8",
    "yolov11": "yolov8",
    "yolo11": "yolov8",
    "yolov12": "yolov8",
    "yolo12": "yolov8",
    "yolov13": "yolov8",
    "yolo13": "yolov8",
    "yolo26": "yolov10",
    "yolov26": "yolov10",
    "yolonas": "yolo-nas",
    "rtdetr": "rt-detr",
    "dfine": "d-fine",
    "rfdetr": "rf-detr",
}


def canonical(family: str) -> str | None:
    """Return a family's name in FAMILIES for how a person writes it; None if there is none."""
    name = family.strip().lower().replace("_", "-")
    for spelling in (name, name.replace("-", "")):
        if spelling in FAMILIES:
            return spelling
        if spelling in _ALIKE:
            return _ALIKE[spelling]
    return None
