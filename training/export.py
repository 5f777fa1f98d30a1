"""Write a checkpoint as the ONNX file that polyolo serves.

    python export.py .cache/step-04000.pt pcb-2.onnx --version 2

Input ``images``: float32 [batch, 3, 416, 416], BGR, 0..255, letterboxed into the top left on grey
114. Output ``output``: float32 [batch, 3549, 11], rows (tx, ty, tw, th, objectness, six class
scores) as YOLOX exports them with ``decode_in_inference=False``: centre = (t_xy + cell) * stride,
size = exp(t_wh) * stride, scores already sigmoids.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import onnx
import torch
from defects import NAMES
from layout import INPUT
from network import Detector, anchor_grid, fold

OPSET = 17  # old enough for every runtime we serve with


def export(checkpoint: Path, path: Path, version: int) -> None:
    """Write the checkpoint to ``path``, batch norms folded, with its metadata; check the file."""
    model = Detector(len(NAMES))
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # the newer exporter needs one more package for the same graph
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            fold(model),
            torch.zeros(2, 3, INPUT, INPUT),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["output"],
            dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
        )
    graph = onnx.load(path)
    sizes = graph.graph.output[0].type.tensor_type.shape.dim  # the exporter leaves them unnamed
    sizes[1].dim_value, sizes[2].dim_value = len(anchor_grid(INPUT)[0]), 5 + len(NAMES)
    about = {
        "names": json.dumps(NAMES),
        "family": "yolox",
        "license": "Apache-2.0",
        "author": "polyolo",
        "description": "Six kinds of defect on bare circuit boards, learnt from drawn boards only.",
        "version": str(version),
    }
    onnx.helper.set_model_props(graph, about)
    graph.producer_name, graph.doc_string = "polyolo", about["description"]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("--version", type=int, required=True)
    args = parser.parse_args()
    export(args.checkpoint, args.path, args.version)


if __name__ == "__main__":
    main()
