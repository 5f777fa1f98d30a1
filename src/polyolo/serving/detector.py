"""Finds objects in decoded pictures: letterbox, inference, boxes. Knows nothing of requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polyolo.errors import InvalidValueError, ModelFailedError
from polyolo.serving.engines import Engine
from polyolo.serving.heads import Candidates, Head
from polyolo.serving.letterbox import Letterbox, Placement
from polyolo.types import Detections, DetectionSettings

_MOST_CANDIDATES = 4096
"""Candidates that enter NMS, the best ones. Its time grows with the square: 47 ms for these,
2 s for the 25,200 of a YOLOv5 asked for confidence 0. An answer has at most 1000 boxes."""
_FARTHEST = 1e6
"""Pixels beyond which a box coordinate is cut: NMSBoxesBatched sets classes apart by multiples
of the largest one, in floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What counts as a detection, with class names resolved to ids; see DetectionSettings."""

    confidence: float
    iou: float
    class_ids: frozenset[int] | None
    """None: all."""
    max_detections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a batch of pictures gave."""

    detections: tuple[Detections, ...]
    """One for each picture, in their order."""
    preprocess_ms: float
    """Milliseconds of wall clock for the whole batch, as the two below."""
    inference_ms: float
    postprocess_ms: float


def resolve(settings: DetectionSettings, names: Sequence[str]) -> Criteria:
    """Return the settings with the classes as ids of a model with these class names.

    A name means every class called so; digits that are no name mean an id. Raises
    InvalidValueError naming the class that is not there.
    """
    class_ids = None
    if settings.classes is not None:
        class_ids = frozenset(id_ for wanted in settings.classes for id_ in _ids(wanted, names))
    return Criteria(
        confidence=settings.confidence,
        iou=settings.iou,
        class_ids=class_ids,
        max_detections=settings.max_detections,
    )


class Detector:
    """One loaded model: an engine, its head, its class names. Safe in any thread."""

    def __init__(self, engine: Engine, head: Head, names: Sequence[str]) -> None:
        self.engine = engine
        self.head = head
        self.names = tuple(names)
        self._letterbox = Letterbox(head.input)

    def detect(self, images: Sequence[NDArray[np.uint8]], criteria: Sequence[Criteria]) -> Results:
        """Return the objects in each picture.

        images: uint8 [H,W,3] BGR, upright. criteria: one for each picture. A graph of a fixed
        batch is run as often as it takes. Raises ModelFailedError when the graph fails, or gives
        what are no numbers or not the shapes it promised.
        """
        detections: list[Detections] = []
        preprocess = inference = postprocess = 0.0
        most = self.head.input.batch or max(1, len(images))
        for first in range(0, len(images), most):
            some = images[first : first + most]
            started = time.perf_counter()
            tensor, placements = self._letterbox(some, most if self.head.input.batch else len(some))
            prepared = time.perf_counter()
            raw = self.engine.infer(self.head.feeds(tensor))
            inferred = time.perf_counter()
            outputs = self._checked(raw, len(tensor))
            for index, placement in enumerate(placements):
                detections.append(self._boxes(outputs, index, placement, criteria[first + index]))
            postprocess += time.perf_counter() - inferred
            inference += inferred - prepared
            preprocess += prepared - started
        return Results(
            detections=tuple(detections),
            preprocess_ms=preprocess * 1e3,
            inference_ms=inference * 1e3,
            postprocess_ms=postprocess * 1e3,
        )

    def _checked(self, raw: Sequence[NDArray[Any]], batch: int) -> list[NDArray[Any]]:
        """Return the outputs that the head decodes, floating ones as float32."""
        outputs = []
        for index, info in self.head.outputs:
            output = raw[index]
            expected = (batch, *info.shape[1:])
            if len(output.shape) != len(expected) or any(
                side not in (0, seen) for side, seen in zip(expected, output.shape, strict=True)
            ):
                raise ModelFailedError(
                    f"the model gave an output {info.name!r} of shape {list(output.shape)} "
                    f"where {list(expected)} was due (0: any)"
                )
            if output.dtype.kind == "f":
                output = output.astype(np.float32, copy=False)
                if not np.isfinite(output).all():
                    raise _not_numbers(info.name)
            outputs.append(output)
        return outputs

    def _boxes(
        self, outputs: list[NDArray[Any]], index: int, placement: Placement, criteria: Criteria
    ) -> Detections:
        """Decode one picture of the batch."""
        found = self.head.decode(outputs, index, criteria.confidence, len(self.names))
        class_id = found.class_id
        if len(class_id) and not 0 <= class_id.min() <= class_id.max() < len(self.names):
            raise ModelFailedError(
                f"the model gave a class from {class_id.min()} to {class_id.max()}, but only "
                f"0 to {len(self.names) - 1} have names"
            )
        if not np.isfinite(found.xyxy).all():
            raise _not_numbers("boxes")
        found = _best(found, criteria)
        if self.head.overlaps and len(found.score) > 1:
            found = _suppress(found, criteria.iou)
        xyxy = placement.back(found.xyxy)
        full = np.flatnonzero((xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1]))
        full = full[: criteria.max_detections]
        return Detections(
            xyxy=xyxy[full],
            confidence=np.minimum(found.score[full], np.float32(1)),
            class_id=found.class_id[full].astype(np.int32),
        )


def _ids(wanted: int | str, names: Sequence[str]) -> list[int]:
    if isinstance(wanted, str):
        named = [id_ for id_, name in enumerate(names) if name == wanted]
        if named:
            return named
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 10:
            wanted = int(wanted)
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return [wanted]
    shown = wanted if isinstance(wanted, int) else repr(wanted[:80])
    raise InvalidValueError(
        f"the model has no class {shown}; its {len(names)} classes have the ids 0 to "
        f"{len(names) - 1}, {names[0]!r} to {names[-1]!r}"
    )


def _best(found: Candidates, criteria: Criteria) -> Candidates:
    """Return the candidates of the wanted classes, best first, equal ones in the graph's order."""
    chosen = np.arange(len(found.score))
    if criteria.class_ids is not None:
        chosen = np.flatnonzero(np.isin(found.class_id, list(criteria.class_ids)))
    order = chosen[np.argsort(-found.score[chosen], kind="stable")[:_MOST_CANDIDATES]]
    return Candidates(
        xyxy=found.xyxy[order], score=found.score[order], class_id=found.class_id[order]
    )


def _suppress(found: Candidates, iou: float) -> Candidates:
    """Drop each box that overlaps a better one of its class (greedy NMS, by class)."""
    box = np.clip(found.xyxy, -_FARTHEST, _FARTHEST).astype(np.float64)
    box[:, 2:] -= box[:, :2]  # OpenCV wants x, y, width, height
    scores: Any = found.score  # OpenCV takes arrays, its stubs only lists
    boxes: Any = box
    class_ids: Any = found.class_id.astype(np.int32)
    # The threshold lies below any score: OpenCV takes only what is above it, not at it.
    indices: Any = cv2.dnn.NMSBoxesBatched(boxes, scores, class_ids, -1.0, iou)
    kept = np.sort(np.asarray(indices, np.intp).ravel())  # ours are in the right order already
    return Candidates(xyxy=found.xyxy[kept], score=found.score[kept], class_id=found.class_id[kept])


def _not_numbers(name: str) -> ModelFailedError:
    return ModelFailedError(f"the model gave values in {name!r} that are not finite numbers")
