"""Every family: a small graph with a known answer, run by ONNX Runtime, recognised and decoded."""

import numpy as np
import pytest

from polyolo.serving.detector import Criteria, Detector
from polyolo.serving.engines import open_engine
from polyolo.serving.heads import class_names, recognise
from tests.unit import graphs

ALL = Criteria(confidence=0.25, iou=0.45, class_ids=None, max_detections=300)
GREY = np.full((64, 64, 3), 114, np.uint8)


def counted():
    """Return the four outputs of a graph with NMS inside, with rubbish behind the count."""
    return {
        "num_dets": np.array([[2]], np.int32),
        "det_boxes": graphs.BOXES[None],
        "det_scores": graphs.SCORES[None],
        "det_classes": graphs.CLASSES[None].astype(np.int32),
    }


def labelled():
    """Return D-FINE's three outputs, without the duplicate."""
    return {
        "labels": graphs.CLASSES[None, :2].astype(np.int64),
        "boxes": graphs.BOXES[None, :2],
        "scores": graphs.SCORES[None, :2],
    }


def pair(boxes, scores, *, decode=graphs.logits, classes=3):
    """Return two outputs of the names, the second through `decode`."""
    box, score = graphs.queries(classes)
    return {boxes: box, scores: decode(score)}


NAS = {
    "boxes": graphs.rows(graphs.PLACES, graphs.BOXES),
    "scores": graphs.scores(graphs.PLACES)[None],
}
SIZES = {"orig_target_sizes": ("int64", ("batch", 2))}
RT_DETR = np.concatenate(graphs.queries(), axis=2)
RAW_MAPS = {f"map{side}": np.zeros((1, 3, side, side, 8), np.float32) for side in (8, 4, 2)}

FAMILIES = {
    "yolov5": ("yolov5", {"output0": graphs.yolov5()}, {}),
    "yolov5 with its raw maps": ("yolov5", {"output0": graphs.yolov5()} | RAW_MAPS, {}),
    "yolov6": ("yolov6", {"outputs": graphs.yolov6()}, {}),
    "yolov8": ("yolov8", {"output0": graphs.yolov8()}, {}),
    "yolov10": ("yolov10", {"output0": graphs.end_to_end()}, {}),
    "yolox": ("yolox", {"output": graphs.yolox()}, {}),
    "yolo-nas": ("yolo-nas", NAS, {}),
    "yolo-nas, scores first": ("yolo-nas", dict(reversed(NAS.items())), {}),
    "rt-detr": ("rt-detr", {"output0": RT_DETR}, {}),
    "d-fine": ("d-fine", labelled(), {"inputs": SIZES}),
    "d-fine as boxes and logits": ("d-fine", pair("pred_boxes", "logits"), {}),
    "rf-detr": ("rf-detr", pair("dets", "labels"), {}),
    "nms": ("nms", counted(), {}),
}


def load(data, family=None, supplied=()):
    """Return a detector of an ONNX file, as the runtime makes it."""
    engine = open_engine("onnxruntime", data)
    head = recognise(engine.signature, family)
    return Detector(engine, head, class_names(engine.signature, head.classes, supplied))


def assert_scene(found, *, tolerance=1e-3):
    """Assert that the graphs' scene was found: two objects, no duplicate, the best one first."""
    assert found.class_id.tolist() == [1, 2]
    np.testing.assert_allclose(found.confidence, [0.9, 0.6], atol=tolerance)
    np.testing.assert_allclose(found.xyxy, graphs.BOXES[:2], atol=64 * tolerance)
    assert (found.xyxy.dtype, found.confidence.dtype) == (np.float32, np.float32)
    assert found.class_id.dtype == np.int32


@pytest.mark.parametrize(("family", "outputs", "more"), FAMILIES.values(), ids=FAMILIES.keys())
def test_each_family_is_recognised_and_decoded_exactly(family, outputs, more):
    """Boxes, scores and classes are those that the graph encodes; its duplicate is gone."""
    detector = load(graphs.graph(outputs, **more))
    assert detector.head.family == family
    assert_scene(detector.detect([GREY], [ALL]).detections[0])


@pytest.mark.parametrize(("family", "outputs", "more"), FAMILIES.values(), ids=FAMILIES.keys())
def test_each_family_maps_boxes_back_to_a_larger_picture(family, outputs, more):
    """A picture of twice the size in both directions gives boxes of twice the size."""
    detector = load(graphs.graph(outputs, **more))
    found = detector.detect([np.zeros((128, 128, 3), np.uint8)], [ALL]).detections[0]
    np.testing.assert_allclose(found.xyxy, 2 * graphs.BOXES[:2], atol=0.1)


@pytest.mark.parametrize(("family", "outputs", "more"), FAMILIES.values(), ids=FAMILIES.keys())
def test_each_family_may_have_a_dynamic_batch(family, outputs, more):
    """A graph with a dynamic batch answers each picture of a batch on its own."""
    data = graphs.graph(outputs, **more | {"image": ("batch", 3, 64, 64)})
    detector = load(data)
    assert detector.head.input.batch == 0
    for found in detector.detect([GREY] * 3, [ALL] * 3).detections:
        assert_scene(found)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "float32"])
@pytest.mark.parametrize("image", [(1, 3, 64, 64), (1, 64, 64, 3)], ids=["NCHW", "NHWC"])
def test_inputs_may_be_of_any_layout_and_number_format(dtype, image):
    """float16, uint8 and float32, channels first and last: the same scene is found."""
    detector = load(graphs.graph({"output0": graphs.yolov8()}, image=image, dtype=dtype))
    assert detector.head.input.dtype == dtype
    assert_scene(detector.detect([GREY], [ALL]).detections[0])


def test_outputs_may_be_float16():
    """A graph in float16 throughout is decoded to float16's precision."""
    outputs = {"output0": graphs.yolov8().astype(np.float16)}
    detector = load(graphs.graph(outputs, dtype="float16"))
    assert_scene(detector.detect([GREY], [ALL]).detections[0], tolerance=2e-3)


def test_a_dynamic_size_is_taken_from_the_metadata():
    """Where the graph leaves height and width open, the metadata's imgsz decides."""
    outputs = {"output0": graphs.yolov8()}
    shapes = {"output0": ("batch", 7, "anchors")}
    image = ("batch", 3, "height", "width")
    data = graphs.graph(outputs, image=image, shapes=shapes, metadata={"imgsz": "[64, 64]"})
    detector = load(data)
    assert detector.head.input.size == (64, 64)
    assert_scene(detector.detect([GREY], [ALL]).detections[0])


def test_a_dynamic_size_is_640_where_nothing_tells():
    """Without metadata the input is 640 x 640, as most models were trained."""
    shapes = {"output0": ("batch", 7, "anchors")}
    data = graphs.graph({"output0": graphs.yolov8()}, image=("b", 3, "h", "w"), shapes=shapes)
    assert load(data).head.input.size == (640, 640)


def test_a_fixed_batch_is_filled_and_run_as_often_as_it_takes():
    """Three pictures through a graph that takes two at once give three answers, in order."""
    shapes = {"output0": (2, 300, 6)}
    data = graphs.graph(
        {"output0": graphs.end_to_end()},
        image=(2, 3, 64, 64),
        shapes=shapes,
        dtype="uint8",
        by_brightness=True,
    )
    pictures = [np.full((64, 64, 3), level, np.uint8) for level in (1, 0, 1)]
    results = load(data).detect(pictures, [ALL] * 3)
    assert [len(found) for found in results.detections] == [2, 0, 2]
    assert_scene(results.detections[2])


def test_a_spare_last_class_needs_no_name():
    """RF-DETR's last column, a heritage of DETR, is ignored when the names are one fewer."""
    outputs = pair("dets", "labels", classes=4)
    outputs["labels"][0, 9, 3] = 9.0
    detector = load(graphs.graph(outputs), supplied=("a", "b", "c"))
    assert_scene(detector.detect([GREY], [ALL]).detections[0])


def test_ultralytics_metadata_gives_the_class_names():
    """Names come out of the file in the form in which Ultralytics writes them."""
    metadata = {"names": "{0: 'person', 1: \"driver's seat\", 2: 'tv'}", "task": "detect"}
    detector = load(graphs.graph({"output0": graphs.yolov8()}, metadata=metadata))
    assert detector.names == ("person", "driver's seat", "tv")
