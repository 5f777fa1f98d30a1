"""What cannot be served is refused with a sentence that names the shapes; what is told, counts."""

import pytest

from polyolo.errors import InvalidValueError, ModelRefusedError
from polyolo.serving.heads import GraphSignature, TensorInfo, class_names, recognise

IMAGE = TensorInfo(name="images", shape=(1, 3, 640, 640), dtype="float32")


def sign(*outputs, image=IMAGE, more=(), names=(), **metadata):
    """Return the signature of a graph with outputs of these shapes."""
    infos = tuple(
        TensorInfo(name=names[at] if names else f"output{at}", shape=shape, dtype="float32")
        for at, shape in enumerate(outputs)
    )
    return GraphSignature(inputs=(image, *more), outputs=infos, metadata=metadata)


def picture(*shape, dtype="float32"):
    """Return an input of this shape."""
    return TensorInfo(name="images", shape=shape, dtype=dtype)


COCO = str({id_: f"name {id_}" for id_ in range(80)})

RECOGNISED = {
    "yolov5n": ("yolov5", sign((1, 25200, 85))),
    "yolov5n6, four levels": ("yolov5", sign((1, 102000, 85), image=picture(1, 3, 1280, 1280))),
    "yolov5 of one class": ("yolov5", sign((1, 25200, 6))),
    "yolov6n": ("yolov6", sign((1, 8400, 85), names=("outputs",))),
    "yolox-s": ("yolox", sign((1, 8400, 85), names=("output",))),
    "yolox of one class": ("yolox", sign((1, 8400, 6))),
    "yolox, told by the file": ("yolox", sign((0, 0, 85), family="YOLOX")),
    "yolov8n": ("yolov8", sign((1, 84, 8400))),
    "yolov8n, dynamic": ("yolov8", sign((0, 84, 0), image=picture(0, 3, 0, 0))),
    "yolov8 of one class": ("yolov8", sign((1, 5, 8400))),
    "yolov8 of two classes": ("yolov8", sign((1, 6, 8400))),
    "yolov8-p2": ("yolov8", sign((1, 84, 34000))),
    "yolov8 of 365 classes": ("yolov8", sign((1, 369, 8400))),
    "yolov10n": ("yolov10", sign((1, 300, 6))),
    "yolo26n, dynamic": ("yolov10", sign((0, 300, 6), image=picture(0, 3, 0, 0))),
    "yolov10, rows dynamic": ("yolov10", sign((0, 0, 6), task="detect")),
    "rt-detr-l": ("rt-detr", sign((1, 300, 84))),
    "rt-detr of 365 classes": ("rt-detr", sign((1, 300, 369))),
    "rt-detr of two classes": (
        "rt-detr",
        sign((1, 300, 6), description="Ultralytics RT-DETR-l model trained on x"),
    ),
    "rt-detr of 200 queries": ("rt-detr", sign((1, 200, 84), names=("out",)), COCO),
    "yolo-nas": ("yolo-nas", sign((1, 8400, 4), (1, 8400, 80))),
    "yolo-nas of four classes": ("yolo-nas", sign((1, 8400, 4), (1, 8400, 4))),
}


@pytest.mark.parametrize("case", RECOGNISED.values(), ids=RECOGNISED.keys())
def test_published_shapes_are_recognised(case):
    """The shapes that the families' own exporters write lead to the right family."""
    family, signature, *names = case
    if names:
        signature = GraphSignature(
            inputs=signature.inputs, outputs=signature.outputs, metadata={"names": names[0]}
        )
    assert recognise(signature).family == family


REFUSED = {
    "segmentation": (sign((1, 116, 8400), (1, 32, 160, 160)), "segmentation"),
    "segmentation by its task": (sign((1, 116, 8400), task="segment"), "'segment'"),
    "pose": (sign((1, 56, 8400), task="pose"), "'pose'"),
    "oriented boxes": (sign((1, 20, 8400), task="obb"), "'obb'"),
    "classification": (sign((1, 1000), task="classify"), "'classify'"),
    "classification without metadata": (sign((1, 1000)), "classification"),
    "undecoded maps": (sign(*[(1, 3, s, s, 85) for s in (80, 40, 20)]), "--grid"),
    "no outputs": (sign(), "no family"),
    "two pictures": (sign((1, 84, 8400), more=(IMAGE,)), "one batch of pictures"),
    "an unknown second input": (
        sign((1, 84, 8400), more=(TensorInfo(name="mask", shape=(1, 7, 7), dtype="int64"),)),
        "one batch of pictures",
    ),
    "grey input": (sign((1, 84, 8400), image=picture(1, 1, 640, 640)), "3 channels"),
    "float64 input": (
        sign((1, 84, 8400), image=picture(1, 3, 640, 640, dtype="float64")),
        "float64",
    ),
    "a text model": (sign((1, 10, 768), image=picture(1, 10, dtype="int64")), "pictures"),
    "an endless input": (sign((1, 84, 8400), image=picture(1, 3, 10**6, 10**6)), "too large"),
    "an endless batch": (sign((999, 84, 8400), image=picture(999, 3, 640, 640)), "too large"),
    "an endless size by metadata": (
        sign((0, 84, 0), image=picture(0, 3, 0, 0), imgsz="[999999, 999999]"),
        "too large",
    ),
    "rows of unknown number": (sign((0, 0, 85)), "`family`"),
    "boxes and scores of unknown number": (sign((1, 0, 4), (1, 0, 80)), "`family`"),
    "rows on no grid": (sign((1, 5000, 85)), "`family`"),
    "two outputs without boxes": (sign((1, 8400, 5), (1, 8400, 80)), "boxes"),
    "boxes alone": (sign((1, 8400, 4)), "fit no family"),
    "labels without a size": (
        sign((1, 300), (1, 300, 4), (1, 300), names=("labels", "boxes", "scores")),
        "orig_target_sizes",
    ),
    "a class count that nothing tells": (sign((1, 0, 8400), family="yolov8"), "names"),
}


@pytest.mark.parametrize(("signature", "because"), REFUSED.values(), ids=REFUSED.keys())
def test_other_graphs_are_refused_with_the_shapes_seen(signature, because):
    """The sentence says why, and names the inputs and outputs."""
    with pytest.raises(ModelRefusedError) as refused:
        recognise(signature)
    assert because in refused.value.detail
    assert str(signature) in refused.value.detail


def test_a_pose_model_without_a_task_is_refused_by_its_class_names():
    """One name, but room for 52 classes: the columns are something else than classes."""
    signature = sign((1, 56, 8400), names=("output0",))
    signature = GraphSignature(
        inputs=signature.inputs, outputs=signature.outputs, metadata={"names": "{0: 'person'}"}
    )
    head = recognise(signature)
    with pytest.raises(ModelRefusedError, match=r"names 1 classes.*52.*\[1,56,8400\]"):
        class_names(signature, head.classes)


@pytest.mark.parametrize(
    ("family", "signature"),
    [
        ("yolov6", sign((1, 8400, 85))),
        ("yolov7", sign((0, 0, 85))),
        ("YOLO11", sign((1, 84, 1234))),
        ("rt_detr", sign((1, 8400, 84))),
        ("yolov5", sign((1, 8400, 85))),
        ("RF-DETR", sign((1, 0, 4), (1, 0, 80))),
        ("yolo-nas", sign((1, 0, 4), (1, 0, 80))),
        ("yolox", sign((0, 0, 85))),
    ],
)
def test_a_family_that_is_told_overrides_recognition(family, signature):
    """What a person says of the model counts more than its shapes."""
    heads = {"yolov7": "yolov5", "YOLO11": "yolov8", "rt_detr": "rt-detr", "RF-DETR": "rf-detr"}
    assert recognise(signature, family).family == heads.get(family, family)


@pytest.mark.parametrize(
    ("family", "signature", "because"),
    [
        ("yolov99", sign((1, 84, 8400)), "there is no family 'yolov99'; there are yolov5"),
        ("yolo-nas", sign((1, 84, 8400)), "not those of family yolo-nas"),
        ("yolov8", sign((1, 300), (1, 300, 4)), "no family"),
        ("yolov10", sign((1, 84, 8400)), "6 columns"),
        ("yolox", sign((1, 1234, 85)), "gives 8400 rows"),
        ("yolov5", sign((1, 25200, 5)), "no room for a class"),
    ],
)
def test_a_family_that_cannot_be_is_refused(family, signature, because):
    """A told family must fit the outputs."""
    with pytest.raises(ModelRefusedError, match=r"family|room|YOLOX") as refused:
        recognise(signature, family)
    assert because in refused.value.detail


YOLO = sign((1, 7, 8400))


def named(text):
    """Return the signature of a detector of three classes with this `names` metadata."""
    return GraphSignature(inputs=YOLO.inputs, outputs=YOLO.outputs, metadata={"names": text})


@pytest.mark.parametrize(
    "text",
    [
        "{0: 'a', 1: 'b', 2: 'c'}",
        '{"0": "a", "1": "b", "2": "c"}',
        "['a', 'b', 'c']",
        '["a", "b", "c"]',
        "{2: 'c', 0: 'a', 1: 'b'}",
    ],
)
def test_class_names_are_read_from_what_exporters_write(text):
    """Python and JSON, dictionaries and lists; supplied names do not replace them."""
    assert class_names(named(text), 3) == ("a", "b", "c")
    assert class_names(named(text), 3, ("x", "y", "z")) == ("a", "b", "c")


@pytest.mark.parametrize(
    "text",
    ["", "person", "{0: ", "[" * 100_000, "{" * 90, "9" * 5000, "{'a': 'b'}", "{-1: 'a'}",
     "{0: 'a', 999999999999: 'b'}", "x" * 300_000, "__import__('os').abort()", "7", "{}", "\0"],
    ids=range(14),
)  # fmt: skip
def test_unreadable_names_count_as_none(text):
    """Hostile or broken metadata costs nothing and gives placeholders."""
    assert class_names(named(text), 3) == ("class_0", "class_1", "class_2")
    assert class_names(named(text), 3, ("x", "y", "z")) == ("x", "y", "z")


def test_a_name_that_is_no_text_is_made_one():
    """Half a surrogate pair, which JSON can hold, would break every answer."""
    assert class_names(named('["a", "b\\ud800", ""]'), 3) == ("a", "b?", "class_2")
    assert class_names(YOLO, 3, ("a", "\udfff", "c")) == ("a", "?", "c")


def test_a_gap_in_the_numbering_is_filled():
    """Ids keep their meaning."""
    assert class_names(named("{0: 'a', 2: 'c'}"), 3) == ("a", "class_1", "c")


@pytest.mark.parametrize("supplied", [("a",), ("a", "b", "c", "d"), ("a", "", "c")])
def test_supplied_names_must_be_as_many_as_the_classes(supplied):
    """A list of the wrong length is its sender's mistake, and said so; so is an empty name."""
    with pytest.raises(InvalidValueError, match="name"):
        class_names(YOLO, 3, supplied)


def test_a_graph_that_tells_no_number_of_classes_takes_any_names():
    """Labels have no columns to count."""
    signature = sign((1, 300, 6))
    assert recognise(signature).classes == 0
    assert class_names(signature, 0, ("a", "b")) == ("a", "b")
    assert class_names(signature, 0)[:2] == ("class_0", "class_1")
