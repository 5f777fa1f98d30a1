"""Pictures reach the graph as its family expects them, and boxes come back to the picture."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.serving.heads import Fit, InputSpec
from polyolo.serving.letterbox import Letterbox, place


def spec(**changes):
    """Return YOLOX's input at 64 x 96, with changes."""
    usual = {
        "name": "images", "size": (64, 96), "batch": 1, "layout": "NCHW", "dtype": "float32",
        "colour": "BGR", "fit": Fit.TOP_LEFT,
    }  # fmt: skip
    return InputSpec(**usual | changes)


def random_picture(height, width, seed=0):
    """Return noise, so that any mix-up of rows, columns or channels shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(picture, into):
    """Return what `into` asks for, written for clarity: NCHW float64."""
    at = place(picture.shape[:2], into)
    canvas = np.full((*into.size, 3), into.pad, np.uint8)
    high, wide = at.size
    resized = cv2.resize(picture, (wide, high), interpolation=cv2.INTER_LINEAR)
    canvas[at.top : at.top + high, at.left : at.left + wide] = resized
    if into.colour == "RGB":
        canvas = canvas[:, :, ::-1]
    return (canvas * np.array(into.gain) + np.array(into.offset)).transpose(2, 0, 1)


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("colour", ["BGR", "RGB"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", [(64, 96), (63, 31), (500, 301), (7, 900)])
def test_the_tensor_is_what_the_plain_formula_gives(fit, colour, layout, dtype, shape):
    """Every fit, colour order, layout, number format; exact but for the last bit of the format."""
    scaling = {}
    if dtype != "uint8":
        scaling = {"gain": (1 / 58, 1 / 57, 1 / 56), "offset": (-2.1, -2.0, -1.8)}
    into = spec(fit=fit, colour=colour, layout=layout, dtype=dtype, **scaling)
    picture = random_picture(*shape)
    tensor, _ = Letterbox(into)([picture], 1)
    assert tensor.dtype == dtype
    seen = tensor[0] if layout == "NCHW" else tensor[0].transpose(2, 0, 1)
    close = {"float32": 1e-5, "float16": 5e-3, "uint8": 0}[dtype]
    np.testing.assert_allclose(seen.astype(np.float64), plain(picture, into), atol=close)


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel():
    """Nothing is interpolated where nothing needs to be."""
    picture = random_picture(64, 96)
    tensor, (at,) = Letterbox(spec())([picture], 1)
    np.testing.assert_array_equal(tensor[0], picture.transpose(2, 0, 1))
    assert (at.left, at.top, at.scale) == (0, 0, (1.0, 1.0))


def test_what_is_left_of_a_fixed_batch_is_black():
    """A batch of four with one picture holds nothing of earlier batches."""
    letterbox = Letterbox(spec(batch=4))
    letterbox([random_picture(64, 96, seed) for seed in range(4)], 4)
    tensor, placements = letterbox([random_picture(64, 96)], 4)
    assert len(placements) == 1
    assert not tensor[1:].any()


def test_threads_do_not_disturb_each_other():
    """Four threads with pictures of their own each get their own tensor, many times over."""
    letterbox = Letterbox(spec())
    wrong = []

    def work(seed):
        picture = random_picture(100 + seed, 80, seed)
        expected = plain(picture, letterbox.spec)
        for _ in range(200):
            tensor, _ = letterbox([picture], 1)
            if not np.allclose(tensor[0], expected):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    fit=st.sampled_from(Fit),
    into=st.tuples(st.integers(32, 1280), st.integers(32, 1280)),
)
def test_a_box_comes_back_to_where_it_was(height, width, fit, into):
    """For any picture and input: the whole picture lies inside, and maps back to itself."""
    at = place((height, width), spec(fit=fit, size=into))
    high, wide = at.size
    assert 1 <= high <= into[0] - at.top
    assert 1 <= wide <= into[1] - at.left
    scale_x, scale_y = at.scale
    inside = [at.left, at.top, at.left + width * scale_x, at.top + height * scale_y]
    back = at.back(np.array([inside, [-1e6, -1e6, 1e6, 1e6]], np.float32))
    np.testing.assert_allclose(
        back[0], [0, 0, width, height], rtol=1e-3, atol=0.05 * max(1 / scale_x, 1 / scale_y)
    )
    np.testing.assert_array_equal(back[1], [0, 0, width, height])  # clipped
