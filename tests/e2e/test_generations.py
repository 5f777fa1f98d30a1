"""Old and new generations of YOLO side by side, in one tenant's runtime."""

import cv2
import numpy as np

from tests.unit import graphs

GENERATIONS = {
    "yolov5": graphs.yolov5(),
    "yolov8": graphs.yolov8(),
    "yolov10": graphs.end_to_end(),
    "yolox": graphs.yolox(),
}


def test_four_generations_answer_alike_in_one_runtime(platform, tmp_path):
    """Graphs that see the same with four kinds of heads give the same boxes, one tenant's all."""
    _, client = platform.tenant("generations")
    picture = cv2.imencode(".png", np.full((64, 64, 3), 127, np.uint8))[1].tobytes()
    names = ("cat", "dog", "cow")
    with client:
        seen = {}
        for family, output in GENERATIONS.items():
            file = tmp_path / f"{family}.onnx"
            metadata = {"family": family}
            file.write_bytes(graphs.graph({"output": output}, metadata=metadata))
            assert client.push_model(family, file, classes=names).family == family
        for family in GENERATIONS:
            answer = client.detect(picture, model=family)
            assert answer.model.name == family
            seen[family] = [
                (found.class_name, round(found.confidence, 2), *map(round, found.bbox))
                for found in answer.detections
            ]
        assert len(seen["yolov8"]) == 2
        assert all(boxes == seen["yolov8"] for boxes in seen.values()), seen
