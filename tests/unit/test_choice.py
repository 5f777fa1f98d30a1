"""Which engine and arithmetic a model gets, from what trials of them gave."""

from __future__ import annotations

import pytest

from polyolo.errors import InvalidValueError, ModelRefusedError
from polyolo.serving import choice, engines
from polyolo.serving.choice import Trial, choose
from polyolo.serving.quality import Seen
from polyolo.serving.wire import Opening
from polyolo.types import ModelRef
from tests.unit import graphs

ONNX = graphs.graph({"output0": graphs.yolov8()})


def opening(**asked) -> Opening:
    defaults = {"path": "m.onnx", "digest": "", "classes": (), "family": None, "streams": 2}
    return Opening(ref=ModelRef(name="m", version=1), **(defaults | asked))


def boxes(count: int, confidence: float = 0.9) -> list[Seen]:
    return [
        Seen(
            xyxy=[(20.0 * n, 0.0, 20.0 * n + 10, 10.0) for n in range(count)],
            confidence=[confidence] * count,
            class_id=[0] * count,
        )
    ]


class Trials:
    """Gives each candidate's result, and remembers who was tried."""

    def __init__(self, **results: Trial) -> None:
        self.results = results
        self.tried: list[str] = []

    def __call__(self, asked: Opening) -> Trial:
        assert asked.engine
        assert asked.arithmetic
        self.tried.append(f"{asked.engine} {asked.arithmetic}")
        return self.results[f"{asked.engine}_{asked.arithmetic}"]


@pytest.fixture
def _both(monkeypatch):
    """Have both ONNX engines, whatever is installed here."""
    monkeypatch.setattr(engines, "find_spec", lambda _: object())


def test_by_default_nothing_is_measured():
    """A start must not cost a trial that nobody asked for: ONNX Runtime in float32."""
    trials = Trials()
    chosen = choose(ONNX, opening(), trials)
    assert (chosen.engine, chosen.arithmetic) == ("onnxruntime", "float32")
    assert (chosen.speed, chosen.quality) == ("", "")
    assert trials.tried == []


def test_a_restart_keeps_what_was_chosen():
    """After a crash nothing is measured again."""
    chosen = choose(ONNX, opening(engine="openvino", precision="fast", arithmetic="bfloat16"))
    assert (chosen.engine, chosen.arithmetic) == ("openvino", "bfloat16")


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize(("rate", "winner"), [(40.0, "openvino"), (31.0, "onnxruntime")])
def test_auto_takes_the_fastest_if_it_is_worth_it(rate: float, winner: str):
    """Exact stays exact; a few percent are noise and not worth a second library."""
    trials = Trials(onnxruntime_float32=Trial(rate=30.0), openvino_float32=Trial(rate=rate))
    chosen = choose(ONNX, opening(engine="auto"), trials)
    assert (chosen.engine, chosen.arithmetic) == (winner, "float32")
    assert chosen.speed == f"onnxruntime float32 30.0/s, openvino float32 {rate}/s"
    assert trials.tried == ["onnxruntime float32", "openvino float32"]


@pytest.mark.usefixtures("_both")
def test_an_engine_that_fails_only_loses():
    """One that crashes on this model leaves it to the other; if all fail the reason is told."""
    one = Trials(onnxruntime_float32=Trial(failed="no"), openvino_float32=Trial(rate=1.0))
    assert choose(ONNX, opening(engine="auto"), one).engine == "openvino"
    both = Trials(onnxruntime_float32=Trial(failed="no"), openvino_float32=Trial(failed="neither"))
    with pytest.raises(ModelRefusedError, match="no"):
        choose(ONNX, opening(engine="auto"), both)


def fast(rate: float = 80.0, seen: list[Seen] | None = None, reference: int = 20) -> Trials:
    return Trials(
        openvino_float32=Trial(rate=30.0, faster=("bfloat16",), seen=boxes(reference)),
        openvino_bfloat16=Trial(rate=rate, seen=boxes(reference) if seen is None else seen),
    )


ASKED = {"engine": "openvino", "precision": "fast", "golden": ("a.jpg",)}


@pytest.mark.usefixtures("_both")
def test_fast_takes_what_passes_the_check():
    """Faster and the same boxes: used, with the figures."""
    chosen = choose(ONNX, opening(**ASKED), fast())
    assert chosen.arithmetic == "bfloat16"
    assert chosen.quality.startswith("openvino bfloat16 accepted (20 boxes in 1 pictures: ")
    assert "bfloat16 80.0/s" in chosen.speed


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (fast(seen=boxes(19)), "refused, agreement"),
        (fast(seen=boxes(20, confidence=0.8)), "refused, confidences drift"),
        (fast(reference=19), "refused, too little to compare: 19 boxes"),
        (fast(rate=32.0), "is not faster than float32"),
        (Trials(openvino_float32=Trial(rate=30.0)), "compute nothing faster"),
    ],
)
def test_fast_falls_back_to_exact_and_says_why(trials: Trials, why: str):
    """Speed never goes over a changed answer, nor over one that could not be checked."""
    chosen = choose(ONNX, opening(**ASKED), trials)
    assert chosen.arithmetic == "float32"
    assert why in chosen.quality


@pytest.mark.usefixtures("_both")
def test_golden_pictures_that_cannot_be_read_are_said():
    """A check that cannot be made is not passed, and what is left to try is not tried."""
    blind = Trial(rate=30.0, faster=("bfloat16",), blind="a.jpg cannot be read")
    trials = Trials(openvino_float32=blind)
    chosen = choose(ONNX, opening(**ASKED), trials)
    assert chosen.arithmetic == "float32"
    assert "a.jpg cannot be read" in chosen.quality


def test_without_golden_pictures_fast_is_exact():
    """There is nothing to check against, so nothing is tried."""
    trials = Trials()
    chosen = choose(ONNX, opening(precision="fast"), trials)
    assert chosen.arithmetic == "float32"
    assert "no golden pictures" in chosen.quality
    assert trials.tried == []


@pytest.mark.usefixtures("_both")
def test_the_fastest_that_passes_wins():
    """One that is refused leaves it to the next."""
    trials = Trials(
        openvino_float32=Trial(rate=30.0, faster=("bfloat16", "float16"), seen=boxes(20)),
        openvino_bfloat16=Trial(rate=80.0, seen=boxes(10)),
        openvino_float16=Trial(rate=60.0, seen=boxes(20)),
    )
    chosen = choose(ONNX, opening(**ASKED), trials)
    assert chosen.arithmetic == "float16"
    assert "bfloat16 refused" in chosen.quality
    assert "float16 accepted" in chosen.quality


def test_settings_that_are_none_are_refused():
    """The sentence names what there is."""
    with pytest.raises(InvalidValueError, match="exact or fast"):
        choose(ONNX, opening(precision="turbo"))
    with pytest.raises(ModelRefusedError, match="onnxruntime, openvino, torch or auto"):
        engines.open_engine("tensorflow", ONNX)


def test_an_engine_that_is_not_installed_says_so(monkeypatch):
    """The sentence says what to install."""
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    with pytest.raises(ModelRefusedError, match=r"pip install 'polyolo\[openvino\]'"):
        engines.open_engine("openvino", ONNX)


def test_a_trial_that_crashes_or_hangs_has_failed(tmp_path, monkeypatch):
    """A process that ends without an answer, or is too late with it, is a candidate less."""
    crashing = tmp_path / "crashing"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o700)
    monkeypatch.setattr(choice.sys, "executable", str(crashing))
    asked = opening(engine="openvino", arithmetic="float32")
    assert "ended its process" in choice._in_a_process(asked).failed
    crashing.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    monkeypatch.setattr(choice, "_TRIAL_S", 0.2)
    assert "took longer" in choice._in_a_process(asked).failed
