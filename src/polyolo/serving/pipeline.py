"""Carries a batch of detection requests from encoded pictures to encoded answers, in one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from polyolo.errors import PolyoloError
from polyolo.serving import image
from polyolo.serving.annotate import annotate, encode
from polyolo.serving.detector import Criteria
from polyolo.serving.loading import LoadedModel
from polyolo.serving.params import JSON
from polyolo.types import DetectAnswer, Detection, Detections, ImageSize, Timing

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, ready for a worker thread."""

    request_id: str
    model: LoadedModel
    criteria: Criteria
    data: bytes
    """The encoded picture."""
    header: image.ImageHeader
    media_type: str
    """Of the answer: JSON, or the annotated picture's."""
    cold_start: bool
    received: float
    """When the picture had arrived, in time.perf_counter's seconds."""
    queued: float
    """When the request began to wait for a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes out, and what it cost."""

    body: bytes
    media_type: str
    timing: Timing


def answer(jobs: Sequence[Job]) -> list[Answer | Exception]:
    """Do a batch of jobs of one model; a job that cannot be done gets its error instead.

    Decode, then letterbox, infer and find the boxes together, then encode. Runs in a worker
    thread, safe in several at once. Raises ModelFailedError when the model fails on the batch.
    """
    started = time.perf_counter()
    outcomes: list[Answer | Exception] = []
    pictures: list[NDArray[np.uint8]] = []
    decoded: list[tuple[int, float]] = []
    for index, job in enumerate(jobs):
        before = time.perf_counter()
        try:
            pictures.append(image.decode(job.data, job.header))
        except PolyoloError as error:
            outcomes.append(error)
        else:
            decoded.append((index, (time.perf_counter() - before) * 1e3))
            outcomes.append(_PENDING)
    if not decoded:
        return outcomes
    detector = jobs[0].model.detector
    results = detector.detect(pictures, [jobs[index].criteria for index, _ in decoded])
    for (index, decode_ms), picture, found in zip(
        decoded, pictures, results.detections, strict=True
    ):
        job = jobs[index]
        timing = Timing(
            queue=_ms(started - job.queued),
            decode=round(decode_ms, 2),
            inference=round(results.inference_ms, 2),
            postprocess=round(results.postprocess_ms, 2),
            total=_ms(time.perf_counter() - job.received),
        )
        try:
            if job.media_type == JSON:
                body = _encode(_document(job, found, detector.names, timing))
            else:
                body = encode(annotate(picture, found, detector.names), job.media_type)
        except PolyoloError as error:
            outcomes[index] = error
        else:
            outcomes[index] = Answer(body=body, media_type=job.media_type, timing=timing)
    return outcomes


_PENDING = PolyoloError("the picture was decoded, but not answered")


def _document(job: Job, found: Detections, names: Sequence[str], timing: Timing) -> DetectAnswer:
    # Rounded as float64: a float32 rounded to 2 digits would be written with 17.
    boxes = found.xyxy.astype(np.float64).round(2).tolist()
    confidences = found.confidence.astype(np.float64).round(4).tolist()
    return DetectAnswer(
        request_id=job.request_id,
        model=job.model.ref,
        image=ImageSize(width=job.header.width, height=job.header.height),
        detections=tuple(
            Detection(class_id=id_, class_name=names[id_], confidence=confidence, bbox=tuple(box))
            for box, confidence, id_ in zip(
                boxes, confidences, found.class_id.tolist(), strict=True
            )
        ),
        timing_ms=timing,
        cold_start=job.cold_start,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
