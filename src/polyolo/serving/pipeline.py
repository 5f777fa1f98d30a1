"""Carries a batch of jobs from encoded pictures to encoded answers, in one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyolo.errors import ModelFailedError, PolyoloError
from polyolo.rollouts import ClassCounts
from polyolo.serving import image
from polyolo.serving.detector import Criteria, Detector, Results, resolve
from polyolo.serving.params import JSON
from polyolo.serving.quality import Seen, differences
from polyolo.serving.wire import ARRAYS, Against, Answer, Job
from polyolo.types import DetectAnswer, Detection, Detections, ImageSize, ModelRef, Timing

Outcome = tuple[Answer, bytes]
"""An answer, and its encoded body."""

_NOTHING: Outcome = (Answer(), b"")  # until there is one

_encode = msgspec.json.Encoder().encode


class Pipeline:
    """decode → letterbox → infer → boxes → encode for one model. Safe in several threads."""

    def __init__(self, ref: ModelRef, detector: Detector) -> None:
        self._ref = ref
        self._detector = detector

    def answer(
        self, jobs: Sequence[Job], pictures: Sequence[memoryview]
    ) -> tuple[list[Answer], list[bytes]]:
        """Return an answer and its encoded body for each job; an error takes an answer's place.

        A picture that cannot be decoded, or on which the model fails, costs only itself.
        """
        started = time.monotonic()
        outcomes: list[Outcome] = [_NOTHING] * len(jobs)
        decoded: list[_Decoded] = []
        for index, (job, data) in enumerate(zip(jobs, pictures, strict=True)):
            before = time.monotonic()
            reference = memoryview(b"")
            if job.against is not None:
                behind = len(data) - job.against.size
                data, reference = data[:behind], data[behind:]
            try:
                criteria = resolve(job.settings, self._detector.names)
                pixels = image.decode(data, job.header)
            except Exception as error:  # noqa: BLE001  # brought to who sent the picture
                outcomes[index] = _failed(error)
            else:
                decode_ms = (time.monotonic() - before) * 1e3
                queue_ms = _ms(started - job.queued)
                decoded.append(
                    _Decoded(index, job, pixels, criteria, queue_ms, decode_ms, reference)
                )
        if decoded:
            for one, outcome in zip(decoded, self._look(decoded), strict=True):
                outcomes[one.index] = outcome
        return [answer for answer, _ in outcomes], [body for _, body in outcomes]

    def _look(self, some: Sequence[_Decoded]) -> list[Outcome]:
        """Run a batch; where that fails, each of it alone, since one of them is to blame."""
        try:
            results = self._detector.detect(
                [one.pixels for one in some], [one.criteria for one in some]
            )
            return [
                self._answered(one, found, results)
                for one, found in zip(some, results.detections, strict=True)
            ]
        except Exception as error:  # noqa: BLE001  # brought to who sent the picture
            if len(some) > 1:
                return [outcome for one in some for outcome in self._look([one])]
            return [_failed(error)]

    def _answered(self, one: _Decoded, found: Detections, results: Results) -> Outcome:
        timing = Timing(
            queue=one.queue_ms,
            decode=round(one.decode_ms, 2),
            inference=round(results.inference_ms, 2),
            postprocess=round(results.postprocess_ms, 2),
            total=_ms(time.monotonic() - one.job.received),
        )
        if one.job.against is not None:
            body = _encode(self._compared(one.reference, one.job.against, found, one.criteria))
        else:
            body = self._encoded(one.job, one.pixels, found, timing)
        return Answer(size=len(body), timing=timing, count=len(found)), body

    def _encoded(
        self, job: Job, pixels: NDArray[np.uint8], found: Detections, timing: Timing
    ) -> bytes:
        if job.media_type == JSON:
            return _encode(self._document(job, found, timing))
        if job.media_type == ARRAYS:
            parts = found.xyxy, found.confidence, found.class_id
            return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        from polyolo.serving.annotate import annotate, encode  # few ask for pictures

        return encode(annotate(pixels, found, self._detector.names), job.media_type)

    def _compared(
        self, reference: memoryview, against: Against, found: Detections, criteria: Criteria
    ) -> list[ClassCounts]:
        names = against.classes, self._detector.names
        return differences(
            _read(reference, against.media_type), seen(found), names, criteria.confidence
        )

    def _document(self, job: Job, found: Detections, timing: Timing) -> DetectAnswer:
        names = self._detector.names
        # Rounded as float64: a float32 rounded to 2 digits would be written with 17.
        boxes = found.xyxy.astype(np.float64).round(2).tolist()
        confidences = found.confidence.astype(np.float64).round(4).tolist()
        return DetectAnswer(
            request_id=job.request_id,
            model=self._ref,
            image=ImageSize(width=job.header.width, height=job.header.height),
            detections=tuple(
                Detection(
                    class_id=id_, class_name=names[id_], confidence=confidence, bbox=tuple(box)
                )
                for box, confidence, id_ in zip(
                    boxes, confidences, found.class_id.tolist(), strict=True
                )
            ),
            timing_ms=timing,
            cold_start=job.cold_start,
        )


@dataclass(frozen=True, slots=True)
class _Decoded:
    index: int
    job: Job
    pixels: NDArray[np.uint8]
    criteria: Criteria
    queue_ms: float
    decode_ms: float
    reference: memoryview


def seen(found: Detections) -> Seen:
    """Return the boxes of one picture as they are compared."""
    return Seen(
        xyxy=found.xyxy.tolist(),
        confidence=found.confidence.tolist(),
        class_id=found.class_id.tolist(),
    )


def _read(answer: memoryview, media_type: str) -> Seen:
    """Read the boxes back out of an encoded answer."""
    if media_type == JSON:
        boxes = msgspec.json.decode(answer, type=DetectAnswer).detections
        return Seen(
            xyxy=[box.bbox for box in boxes],
            confidence=[box.confidence for box in boxes],
            class_id=[box.class_id for box in boxes],
        )
    count = len(answer) // 24  # bytes of a detection: four coordinates, confidence, class
    xyxy: Any = np.frombuffer(answer[: 16 * count], "<f4").reshape(-1, 4).tolist()
    return Seen(
        xyxy=xyxy,
        confidence=np.frombuffer(answer[16 * count : 20 * count], "<f4").tolist(),
        class_id=np.frombuffer(answer[20 * count :], "<i4").tolist(),
    )


def _failed(error: Exception) -> Outcome:
    if not isinstance(error, PolyoloError):  # a MemoryError, or a defect of ours
        error = ModelFailedError(f"the model failed on this picture ({type(error).__name__})")
    return Answer(error=error.code, detail=error.detail), b""


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
