"""From decoded pictures to boxes: against the recorded answers of a real model, and on purpose."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyolo.errors import InvalidValueError, ModelFailedError
from polyolo.serving.detector import Criteria, Detector, resolve
from polyolo.serving.engines import open_engine
from polyolo.serving.heads import GraphSignature, TensorInfo, class_names, recognise
from polyolo.serving.image import decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.types import DetectionSettings
from tests.unit import graphs

SHARED = Path(__file__).parents[2].parent / "shared"
NAMES = ("cat", "dog", "5", "dog")
ALL = Criteria(confidence=0.25, iou=0.45, class_ids=None, max_detections=300)
GREY = np.full((64, 64, 3), 114, np.uint8)


class Scripted:
    """An engine that gives what it is told, and keeps what it was fed with."""

    def __init__(self, *outputs, size=(64, 64), inputs=(), names=()):
        infos = tuple(
            TensorInfo(name=names[at] if names else f"output{at}", shape=out.shape, dtype="float32")
            for at, out in enumerate(outputs)
        )
        image = TensorInfo(name="images", shape=(1, 3, *size), dtype="float32")
        self.signature = GraphSignature(inputs=(image, *inputs), outputs=infos)
        self.outputs = list(outputs)
        self.fed = {}

    def infer(self, feeds):
        """Give the script's outputs."""
        self.fed = feeds
        return self.outputs

    def close(self):
        """Do nothing."""


def detector(*outputs, names=("a", "b", "c"), family=None, **engine):
    """Return a detector of a scripted engine."""
    script = Scripted(*outputs, **engine)
    return Detector(script, recognise(script.signature, family), names)


def dense(boxes, scores, class_ids):
    """Return a YOLOv8 output [1,7,84] with these boxes (corners) in its first places."""
    out = np.zeros((1, 7, graphs.PLACES), np.float32)
    count = len(boxes)
    out[0, :4, :count] = graphs.centred(np.array(boxes, np.float32)).T
    out[0, 4 + np.array(class_ids), np.arange(count)] = scores
    return out


@pytest.fixture(scope="module")
def yolox_nano():
    """Give the real YOLOX-Nano and what it is known to find."""
    model = SHARED / "models/yolox_nano.onnx"
    if not model.exists():
        pytest.skip("../shared, which holds YOLOX-Nano and the photographs, is not here")
    engine = open_engine("onnxruntime", model.read_bytes())
    head = recognise(engine.signature)
    expected = json.loads((SHARED / "expected/yolox_nano.json").read_text())
    yield Detector(engine, head, class_names(engine.signature, head.classes)), expected["images"]
    engine.close()


def test_yolox_nano_finds_what_it_is_known_to_find(yolox_nano):
    """In all photographs the same objects: class, box (a hundredth pixel), confidence."""
    real, expected = yolox_nano
    assert real.head.family == "yolox"
    criteria = replace(ALL, confidence=0.3)
    assert len(expected) == 40
    for name, answer in expected.items():
        data = (SHARED / "photos" / name).read_bytes()
        header = read_header(data, ImageLimits())
        assert (header.width, header.height) == (answer["width"], answer["height"])
        (found,) = real.detect([decode(data, header)], [criteria]).detections
        known = answer["detections"]
        assert found.class_id.tolist() == [one["class_id"] for one in known], name
        boxes = np.array([one["bbox"] for one in known]).reshape(-1, 4)
        np.testing.assert_allclose(found.xyxy, boxes, atol=0.02, err_msg=name)
        scores = [one["confidence"] for one in known]
        np.testing.assert_allclose(found.confidence, scores, atol=2e-4, err_msg=name)


def test_threads_share_a_detector(yolox_nano):
    """Three threads with different pictures each get the boxes of their own."""
    real, expected = yolox_nano
    wrong = []

    def work(name):
        data = (SHARED / "photos" / name).read_bytes()
        picture = decode(data, read_header(data, ImageLimits()))
        for _ in range(5):
            (found,) = real.detect([picture], [replace(ALL, confidence=0.3)]).detections
            if found.class_id.tolist() != [d["class_id"] for d in expected[name]["detections"]]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in list(expected)[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_overlapping_boxes_of_different_classes_both_stay():
    """NMS works within a class, even for equal boxes."""
    box = [10, 10, 30, 30]
    (found,) = detector(dense([box, box], [0.8, 0.7], [0, 1])).detect([GREY], [ALL]).detections
    assert found.class_id.tolist() == [0, 1]


def test_the_iou_threshold_decides():
    """Boxes with an overlap of 0.6 are one object at 0.5, two at 0.7."""
    boxes = [[0, 0, 40, 40], [0, 10, 40, 50]]  # 1200 / 2000
    some = detector(dense(boxes, [0.8, 0.7], [0, 0]))
    for iou, count in ((0.5, 1), (0.7, 2), (1.0, 2), (0.0, 1)):
        (found,) = some.detect([GREY], [replace(ALL, iou=iou)]).detections
        assert len(found) == count, iou


def test_a_score_at_the_confidence_counts():
    """The least confidence is itself enough, at both ends of the range."""
    some = detector(dense([[0, 0, 9, 9], [20, 20, 29, 29]], [1.0, 0.5], [0, 0]))
    for confidence, count in ((0.5, 2), (0.51, 1), (1.0, 1)):
        (found,) = some.detect([GREY], [replace(ALL, confidence=confidence)]).detections
        assert len(found) == count, confidence


def test_equal_scores_keep_the_graphs_order():
    """Answers are deterministic: ties are broken by the place in the output."""
    boxes = [[i * 6, 0, i * 6 + 5, 5] for i in range(9)]
    (found,) = detector(dense(boxes, [0.5] * 9, [0] * 9)).detect([GREY], [ALL]).detections
    np.testing.assert_array_equal(found.xyxy[:, 0], [box[0] for box in boxes])


def test_boxes_are_clipped_and_those_outside_dropped():
    """A box over the border ends there; one wholly in the border around the picture is none."""
    picture = np.zeros((32, 64, 3), np.uint8)  # lies at rows 16 to 48 of the input
    boxes = [[-5, 10, 20, 30], [30, 0, 60, 15], [40, 40, 90, 90]]
    (found,) = (
        detector(dense(boxes, [0.9, 0.8, 0.7], [0, 0, 0])).detect([picture], [ALL]).detections
    )
    np.testing.assert_allclose(found.xyxy, [[0, 0, 20, 14], [40, 24, 64, 32]], atol=1e-4)


def test_only_the_wanted_classes_and_no_more_than_asked_for():
    """The class filter and the maximum hold; an empty filter lets nothing through."""
    boxes = [[i * 9, 0, i * 9 + 8, 8] for i in range(6)]
    some = detector(dense(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0, 1, 2, 0, 1, 2]))
    for ids, most, scores in (
        ({0, 2}, 300, [0.9, 0.7, 0.6, 0.4]),
        ({0, 2}, 3, [0.9, 0.7, 0.6]),
        (set(), 300, []),
    ):
        criteria = replace(ALL, class_ids=frozenset(ids), max_detections=most)
        (found,) = some.detect([GREY], [criteria]).detections
        np.testing.assert_allclose(found.confidence, scores)


def test_each_picture_of_a_batch_has_its_own_criteria():
    """Requests that share a batch do not share thresholds."""
    some = detector(dense([[0, 0, 9, 9], [20, 20, 29, 29]], [0.9, 0.5], [0, 0]))
    strict = replace(ALL, confidence=0.8)
    results = some.detect([GREY, GREY], [ALL, strict])
    assert [len(found) for found in results.detections] == [2, 1]
    assert min(results.preprocess_ms, results.inference_ms, results.postprocess_ms) > 0


def test_no_pictures_give_no_detections():
    """An empty batch is answered, and the engine left alone."""
    assert detector(dense([[0, 0, 9, 9]], [0.9], [0])).detect([], []).detections == ()


def test_nothing_found_is_an_empty_answer():
    """Arrays keep their shapes without a row."""
    (found,) = detector(dense([[0, 0, 9, 9]], [0.1], [0])).detect([GREY], [ALL]).detections
    assert (found.xyxy.shape, found.confidence.shape, found.class_id.shape) == ((0, 4), (0,), (0,))


def test_the_most_hostile_thresholds_stay_bounded():
    """25,200 boxes that all count and never overlap: the best 1000, in order."""
    rng = np.random.default_rng(0)
    out = rng.random((1, 25200, 6)).astype(np.float32)
    out[0, :, :4] *= 600
    out[0, :, 2:4] = 1
    some = detector(out, size=(640, 640), names=("thing",))
    assert some.head.family == "yolov5"
    criteria = Criteria(confidence=0.0, iou=1.0, class_ids=None, max_detections=1000)
    started = time.process_time()
    results = some.detect([np.zeros((640, 640, 3), np.uint8)], [criteria])
    took = time.process_time() - started
    (found,) = results.detections
    np.testing.assert_allclose(found.confidence, np.sort(out[0, :, 4] * out[0, :, 5])[::-1][:1000])
    assert took < 1.5  # of work: 2 s and more without the bound, here 50 ms


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 5])
def test_a_model_that_gives_no_numbers_is_reported(value, row):
    """NaN and infinities anywhere are the model's failure, not an empty answer."""
    out = dense([[0, 0, 9, 9]], [0.9], [0])
    out[0, row, 80] = value
    with pytest.raises(ModelFailedError, match="not finite"):
        detector(out).detect([GREY], [ALL])


def test_a_box_that_overflows_in_decoding_is_reported():
    """YOLOX's exponential of a large number is no box."""
    out = graphs.yolox()
    out[0, 5, 2] = 500
    with pytest.raises(ModelFailedError, match="not finite"):
        detector(out, names=("a", "b", "c"), family="yolox").detect([GREY], [ALL])


def test_an_output_of_another_shape_than_promised_is_reported():
    """Nothing is read out of an output that is not what was recognised."""
    some = detector(dense([[0, 0, 9, 9]], [0.9], [0]))
    for shape in ((1, 8, graphs.PLACES), (2, 7, graphs.PLACES), (7, graphs.PLACES)):
        some.engine.outputs = [np.zeros(shape, np.float32)]
        with pytest.raises(ModelFailedError, match="shape"):
            some.detect([GREY], [ALL])


@pytest.mark.parametrize("label", [-1, 3, 1e9, -1e30])
def test_a_label_without_a_name_is_reported(label):
    """A class that the model must not know means that its names are wrong, or it is broken."""
    out = graphs.end_to_end()
    out[0, 0, 5] = label
    with pytest.raises(ModelFailedError, match="class"):
        detector(out).detect([GREY], [ALL])


def test_a_graph_that_asks_for_sizes_is_told_the_tensors():
    """D-FINE's orig_target_sizes are width, height, in the number format that it declares."""
    sizes = TensorInfo(name="orig_target_sizes", shape=(1, 2), dtype="int64")
    outputs = (np.array([[1]]), np.array([[[8, 16, 40, 48]]], np.float32), np.array([[0.9]]))
    script = Scripted(
        *outputs, size=(64, 128), inputs=(sizes,), names=("labels", "boxes", "scores")
    )
    some = Detector(script, recognise(script.signature), ("a", "b"))
    (found,) = some.detect([np.zeros((128, 64, 3), np.uint8)], [ALL]).detections
    fed = script.fed["orig_target_sizes"]
    assert (fed.tolist(), fed.dtype) == ([[128, 64]], np.int64)
    np.testing.assert_allclose(found.xyxy, [[4, 32, 20, 96]])  # stretched: each axis on its own


def test_classes_are_resolved_by_id_and_by_name():
    """A name means every class called so; digits mean an id, unless a class is called so."""

    def ids(*wanted):
        return resolve(DetectionSettings(classes=wanted), NAMES).class_ids

    assert ids(0, "dog") == {0, 1, 3}
    assert ids("1") == {1}
    assert ids("5") == {2}
    assert resolve(DetectionSettings(), NAMES).class_ids is None
    whole = resolve(DetectionSettings(confidence=0.1, iou=0.2, max_detections=7), NAMES)
    assert whole == Criteria(confidence=0.1, iou=0.2, class_ids=None, max_detections=7)


@pytest.mark.parametrize("wanted", [4, -1, 10**30, "Cat", "", "9" * 50, "x" * 5000])
def test_an_unknown_class_is_named(wanted):
    """The sentence names the class, shortened, and says what there is."""
    with pytest.raises(InvalidValueError, match="no class") as error:
        resolve(DetectionSettings(classes=(wanted,)), NAMES)
    assert str(wanted)[:20] in error.value.detail
    assert len(error.value.detail) < 300
