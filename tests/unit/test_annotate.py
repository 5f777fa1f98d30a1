"""The annotated picture shows the boxes where they are, and is a JPEG or a PNG."""

import threading

import cv2
import numpy as np
import pytest

from polyolo.errors import InvalidValueError
from polyolo.serving.annotate import annotate, encode
from polyolo.types import Detections

GREY = np.full((120, 160, 3), 128, np.uint8)


def found(*boxes, class_id=0):
    """Return detections of one class with these boxes."""
    return Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        confidence=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        class_id=np.full(len(boxes), class_id, np.int32),
    )


def test_a_box_is_drawn_where_it_is():
    """Its four sides are coloured, its inside and the rest are not; the input stays as it was."""
    before = GREY.copy()
    drawn = annotate(GREY, found([40, 60, 120, 100]), ["cat"])
    np.testing.assert_array_equal(GREY, before)
    changed = (drawn != GREY).any(axis=2)
    for y, x in ((60, 80), (100, 80), (80, 40), (80, 120)):
        assert changed[y, x]
    assert not changed[66:95, 46:115].any()
    assert not changed[105:].any()
    assert changed[45:58, 42:60].any()  # the label, above


def test_nothing_found_is_the_picture_itself():
    """No detections: no pixel differs."""
    np.testing.assert_array_equal(annotate(GREY, found(), []), GREY)


def test_classes_have_colours_of_their_own():
    """The same class has the same colour in every picture, another class another."""
    box = [40, 60, 120, 100]
    colours = [tuple(annotate(GREY, found(box, class_id=id_), [])[80, 40]) for id_ in range(80)]
    assert len(set(colours)) == 80
    assert colours[3] == tuple(annotate(GREY, found(box, class_id=3), ["x"] * 9)[80, 40])


@pytest.mark.parametrize("name", ["", "x" * 200, "стул", "椅子 🪑", "a\nb\0c\ud800", "%s{}"])
@pytest.mark.parametrize("box", [[0, 0, 160, 120], [159, 119, 160, 120], [-5, -5, 5, 5]])
def test_any_name_fits_anywhere(name, box):
    """Long, foreign and broken names at any border are drawn or shortened, never an error."""
    assert annotate(GREY, found(box), [name]).shape == GREY.shape


@pytest.mark.parametrize("shape", [(1, 1), (3, 4000), (4000, 3)])
def test_pictures_of_any_shape_can_be_drawn_into(shape):
    """Even one pixel."""
    picture = np.zeros((*shape, 3), np.uint8)
    assert annotate(picture, found([0, 0, shape[1], shape[0]]), ["a"]).shape == picture.shape


@pytest.mark.parametrize(
    ("media_type", "magic", "close"),
    [("image/jpeg", b"\xff\xd8\xff", 12), ("image/png", b"\x89PNG", 0)],
)
def test_the_picture_is_encoded_as_asked(media_type, magic, close):
    """The bytes are of the type, and decode to the picture in the right colours."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :16], picture[:, 16:32] = (255, 0, 0), (0, 255, 0)
    data = encode(picture, media_type)
    assert data.startswith(magic)
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    inner = np.abs(seen.astype(int) - picture)[:, [4, 24, 44]]
    assert inner.max() <= close


def test_what_is_too_long_for_a_jpeg_is_said():
    """A side over 65,500 pixels can only be had as PNG."""
    picture = np.zeros((1, 65_501, 3), np.uint8)
    with pytest.raises(InvalidValueError, match="image/png"):
        encode(picture, "image/jpeg")
    assert encode(picture, "image/png").startswith(b"\x89PNG")


def test_threads_draw_side_by_side():
    """Fonts are shared by all threads; letters come out the same."""
    some = found([40, 60, 120, 100], [10, 20, 50, 60])
    expected = annotate(GREY, some, ["кошка 猫"])
    wrong = []

    def work():
        wrong.extend(
            1 for _ in range(50) if not np.array_equal(annotate(GREY, some, ["кошка 猫"]), expected)
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
