"""What people write first: FastAPI, a thread pool, one ONNX Runtime session. For comparison.

`python -m tests.bench.plain_server MODEL SOCKET` serves `POST /v1/detect` with the same decoding
and the same heads as a runtime, and nothing else of it: no queue, no bounds, no isolation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import Body, FastAPI

from polyolo.serving.detector import Detector, resolve
from polyolo.serving.engines import open_engine
from polyolo.serving.heads import class_names, recognise
from polyolo.serving.image import decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.types import DetectionSettings


class DefaultSession:
    """A session with ONNX Runtime's own settings: as many threads a run as there are cores."""

    def __init__(self, data: bytes) -> None:
        self.name, self.device = "onnxruntime", "cpu"
        self.signature = open_engine(self.name, data).signature
        self._session = ort.InferenceSession(data)

    def infer(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(None, feeds)

    def close(self) -> None:
        pass


def app(model: Path) -> FastAPI:
    """Return the application."""
    engine = DefaultSession(model.read_bytes())
    head = recognise(engine.signature)
    detector = Detector(engine, head, class_names(engine.signature, head.classes))
    criteria = resolve(DetectionSettings(), detector.names)
    limits = ImageLimits()
    application = FastAPI()

    @application.post("/v1/detect")
    def detect(body: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, object]]:
        found = detector.detect([decode(body, read_header(body, limits))], [criteria]).detections[0]
        return [
            {"class": detector.names[id_], "confidence": confidence, "bbox": box}
            for box, confidence, id_ in zip(
                found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True
            )
        ]

    return application


if __name__ == "__main__":
    uvicorn.run(app(Path(sys.argv[1])), uds=sys.argv[2], log_level="error")
