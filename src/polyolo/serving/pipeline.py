"""Carries a batch of jobs from encoded pictures to encoded answers, in one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyolo.errors import PolyoloError
from polyolo.serving import image
from polyolo.serving.detector import Criteria, Detector, resolve
from polyolo.serving.params import JSON
from polyolo.serving.wire import ARRAYS, Answer, Job
from polyolo.types import DetectAnswer, Detection, Detections, ImageSize, ModelRef, Timing

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

        A picture that cannot be decoded costs only itself; a model that fails costs the batch.
        """
        started = time.monotonic()
        outcomes: list[tuple[Answer, bytes] | None] = [None] * len(jobs)
        decoded: list[_Decoded] = []
        for index, (job, data) in enumerate(zip(jobs, pictures, strict=True)):
            before = time.monotonic()
            try:
                criteria = resolve(job.settings, self._detector.names)
                pixels = image.decode(data, job.header)
            except PolyoloError as error:
                outcomes[index] = _failed(error)
            else:
                decode_ms = (time.monotonic() - before) * 1e3
                decoded.append(_Decoded(index, pixels, criteria, decode_ms))
        if decoded:
            try:
                results = self._detector.detect(
                    [one.pixels for one in decoded], [one.criteria for one in decoded]
                )
            except PolyoloError as error:
                for one in decoded:
                    outcomes[one.index] = _failed(error)
            else:
                for one, found in zip(decoded, results.detections, strict=True):
                    job = jobs[one.index]
                    timing = Timing(
                        queue=_ms(started - job.queued),
                        decode=round(one.decode_ms, 2),
                        inference=round(results.inference_ms, 2),
                        postprocess=round(results.postprocess_ms, 2),
                        total=_ms(time.monotonic() - job.received),
                    )
                    body = self._encoded(job, one.pixels, found, timing)
                    answer = Answer(size=len(body), timing=timing, count=len(found))
                    outcomes[one.index] = answer, body
        settled = [outcome for outcome in outcomes if outcome is not None]
        return [answer for answer, _ in settled], [body for _, body in settled]

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
    pixels: NDArray[np.uint8]
    criteria: Criteria
    decode_ms: float


def _failed(error: PolyoloError) -> tuple[Answer, bytes]:
    return Answer(error=error.code, detail=error.detail), b""


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
