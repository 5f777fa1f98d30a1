"""Makes a graph's head: recognised, or of the family it is told, or refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from polyolo.errors import ModelRefusedError
from polyolo.serving.heads import dense, direct
from polyolo.serving.heads.families import FAMILIES, Family, canonical
from polyolo.serving.heads.guess import guess
from polyolo.serving.heads.head import Decode, Head, InputSpec
from polyolo.serving.heads.picks import Picks, pick
from polyolo.serving.heads.signature import GraphSignature, TensorInfo, names_in


def recognise(signature: GraphSignature, family: str | None = None, input_size: int = 0) -> Head:
    """Return how to feed a graph and to decode its outputs.

    family: overrides recognition; a name of FAMILIES, or of a family that is exported alike
    (yolov7, yolo11 …). input_size: side in pixels of the input, where the graph leaves it open;
    0: what the graph or its metadata say. Raises ModelRefusedError, naming the shapes seen.
    """
    picks = pick(signature, input_size)
    name = guess(signature, picks) if family is None else _known(family)
    chosen = FAMILIES[name]
    if picks.kind not in (*chosen.kinds, "counted"):
        raise ModelRefusedError(f"its outputs are not those of family {name} ({signature})")
    classes = _classes(signature, picks, chosen)
    outputs = picks.outputs
    if picks.kind == "single":
        index, output = outputs[0]
        outputs = ((index, _resolved(output, picks, name, classes, signature)),)
    return Head(
        family=name,
        input=_input(picks, chosen),
        classes=classes,
        outputs=outputs,
        overlaps=chosen.overlaps and picks.kind in ("single", "pair"),
        decode=_decoder(name, picks, outputs[0][1]),
        size_input=picks.size_input,
    )


def _known(family: str) -> str:
    name = canonical(family)
    if name is None:
        known = ", ".join(FAMILIES)
        raise ModelRefusedError(f"there is no family {family[:40]!r}; there are {known}")
    return name


def _classes(signature: GraphSignature, picks: Picks, chosen: Family) -> int:
    """Return how many classes the outputs have room for; 0 where they hold labels instead."""
    if picks.kind == "pair":
        classes = picks.outputs[1][1].shape[2]
    elif picks.kind == "single" and chosen.extra is not None:
        wide = picks.outputs[0][1].shape[chosen.classes_in]
        classes = wide - chosen.extra if wide else 0
    else:
        return 0
    # A dynamic dimension where the classes are: the names in the metadata count them.
    classes = classes or len(names_in(signature.metadata))
    if classes < 1:
        raise ModelRefusedError(
            "its outputs have no room for a class, or do not tell for how many; export it with "
            f"static outputs, or with the names in its metadata ({signature})"
        )
    return classes


def _resolved(
    output: TensorInfo, picks: Picks, name: str, classes: int, signature: GraphSignature
) -> TensorInfo:
    """Return a single output's shape with what is known of its dynamic dimensions."""
    chosen = FAMILIES[name]
    shape = list(output.shape)
    wide = 6 if chosen.extra is None else chosen.extra + classes
    if shape[chosen.classes_in] not in (0, wide):
        raise ModelRefusedError(f"an output of family {name} has {wide} columns ({signature})")
    shape[chosen.classes_in] = wide
    if name == "yolox" and shape[1] == 0:
        shape[1] = dense.places(picks.size, dense.GRIDS[0])
    if name == "yolox" and all(shape[1] != dense.places(picks.size, g) for g in dense.GRIDS):
        width, height = picks.size[1], picks.size[0]
        expected = dense.places(picks.size, dense.GRIDS[0])
        raise ModelRefusedError(
            f"a YOLOX of {width} x {height} pixels gives {expected} rows ({signature})"
        )
    return replace(output, shape=tuple(shape))


def _input(picks: Picks, chosen: Family) -> InputSpec:
    raw = picks.image.dtype == "uint8"  # bytes go in as they are: the graph scales them
    return InputSpec(
        name=picks.image.name,
        size=picks.size,
        batch=picks.image.shape[0],
        layout=picks.layout,
        dtype=cast(Literal["float32", "float16", "uint8"], picks.image.dtype),
        colour=chosen.colour,
        gain=(1.0, 1.0, 1.0) if raw else chosen.gain,
        offset=(0.0, 0.0, 0.0) if raw else chosen.offset,
        fit=chosen.fit,
    )


def _decoder(name: str, picks: Picks, output: TensorInfo) -> Decode:
    if picks.kind == "counted":
        return direct.with_nms
    if picks.kind == "labelled":
        return direct.labelled
    if picks.kind == "pair":
        return dense.yolo_nas if name == "yolo-nas" else direct.queries(picks.size)
    if name == "yolox":
        rows = output.shape[1]
        return dense.yolox(
            picks.size, next(g for g in dense.GRIDS if dense.places(picks.size, g) == rows)
        )
    if name == "rt-detr":
        return direct.rt_detr(picks.size)
    return {"yolov8": dense.yolov8, "yolov10": direct.end_to_end}.get(name, dense.yolov5)
