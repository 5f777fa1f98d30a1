"""Models that others publish and `polyolo models pull` fetches: where they are, and what is true.

No third party's weights are in the package. Size and sha256 make a file from any source,
a mirror or a memory stick included, as good as the upstream release.
"""

from __future__ import annotations

from dataclasses import dataclass

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 class names of COCO, by class id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model file as its makers released it."""

    name: str
    url: str
    size: int
    """Bytes."""
    sha256: str
    classes: tuple[str, ...]
    licence: str

    @property
    def file_name(self) -> str:
        """The name that the release gives the file."""
        return self.url.rpartition("/")[2]


CATALOGUE = {
    model.name: model
    for model in (
        Published(
            name="yolox-nano",
            url="https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.onnx",
            size=3_659_407,
            sha256="c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d",
            classes=COCO,
            licence="Apache-2.0, Megvii",
        ),
    )
}
