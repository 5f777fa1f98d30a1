"""Tells families apart whose outputs look alike, by arithmetic, names and metadata."""

from __future__ import annotations

from polyolo.errors import ModelRefusedError
from polyolo.serving.heads.dense import GRIDS, places
from polyolo.serving.heads.families import canonical
from polyolo.serving.heads.picks import Picks
from polyolo.serving.heads.signature import GraphSignature, names_in

_MOST_QUERIES = 1000
"""Rows up to which an output may be a set of objects and not a grid; DETRs have 100 to 900."""
_USUAL_QUERIES = 300  # of YOLOv10, YOLO26, RT-DETR, D-FINE and RF-DETR


def guess(signature: GraphSignature, picks: Picks) -> str:
    """Return the family of a graph, a name of FAMILIES.

    The rules, first match wins. Metadata: `family`, or a family's name in `description`. Four
    counted outputs are `nms`; labels, boxes and scores `d-fine`. Boxes and scores are `rf-detr`
    if called dets and labels, `d-fine` if logits and pred_boxes, `yolo-nas` on a grid. For one
    output see `_single`. Raises ModelRefusedError, naming the shapes, where nothing decides.
    """
    told = canonical(signature.metadata.get("family", ""))
    if told:
        return told
    if picks.kind == "counted":
        return "nms"
    if picks.kind == "labelled":
        return "d-fine"
    if picks.kind == "pair":
        return _pair(signature, picks)
    return _single(signature, picks)


def _pair(signature: GraphSignature, picks: Picks) -> str:
    names = {one.name for _, one in picks.outputs}
    if names == {"dets", "labels"}:
        return "rf-detr"
    if names == {"logits", "pred_boxes"}:
        return "d-fine"
    rows = picks.outputs[0][1].shape[1]
    if rows in _grids(picks) or rows > _MOST_QUERIES:
        return "yolo-nas"
    raise _undecided(signature, "yolo-nas, d-fine or rf-detr")


def _single(signature: GraphSignature, picks: Picks) -> str:
    """Tell the families with one output [B,A,C] apart.

    C is the number of places of the input's grids: columns, `yolov8`. A is three times that:
    `yolov5` has three anchors a place. A is that: `yolox`, or `yolov6` if the output is called
    `outputs`, as YOLOv6's exporter does; nothing else tells these two apart. A of at most 1000
    that is no grid: objects, `yolov10` with C = 6, else `rt-detr` if A = 300 or the metadata
    names C - 4 classes. Left are columns on an unusual grid: A < C.
    """
    output = picks.outputs[0][1]
    _, rows, columns = output.shape
    names = len(names_in(signature.metadata))
    grids = _grids(picks)
    about = signature.metadata.get("description", "").lower().replace("-", "")
    is_detr = "rtdetr" in about
    if rows >= 5 and columns in grids and not is_detr:
        return "yolov8"
    if columns >= 6 and rows in {3 * places_ for places_ in grids}:
        return "yolov5"
    if columns >= 6 and rows in grids:
        return "yolov6" if output.name == "outputs" or "yolov6" in about else "yolox"
    # Ultralytics writes a task; YOLOv5's own exporter, whose one class also makes C = 6, none.
    few = 0 < rows <= _MOST_QUERIES
    if columns == 6 and not is_detr and (few or (rows == 0 and "task" in signature.metadata)):
        return "yolov10"
    known = is_detr or rows == _USUAL_QUERIES or (few and names == columns - 4)
    if (columns >= 5 and columns != 6 and known) or is_detr:
        return "rt-detr"
    if rows >= 5 and (columns == 0 or rows < columns):
        return "yolov8"
    if columns >= 6:
        raise _undecided(signature, "yolov5, yolov6, yolox or rt-detr")
    raise _undecided(signature, "one of them")


def _grids(picks: Picks) -> set[int]:
    return {places(picks.size, strides) for strides in GRIDS}


def _undecided(signature: GraphSignature, families: str) -> ModelRefusedError:
    return ModelRefusedError(
        f"its shapes fit no family, or more than one; say which it is by setting `family` to "
        f"{families} ({signature})"
    )
