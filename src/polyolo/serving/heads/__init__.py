"""Heads: which family a graph is of, how pictures go into it, how boxes come out."""

from polyolo.serving.heads.families import FAMILIES
from polyolo.serving.heads.head import Candidates, Fit, Head, InputSpec
from polyolo.serving.heads.recognise import recognise
from polyolo.serving.heads.signature import GraphSignature, TensorInfo, class_names

__all__ = [
    "FAMILIES",
    "Candidates",
    "Fit",
    "GraphSignature",
    "Head",
    "InputSpec",
    "TensorInfo",
    "class_names",
    "recognise",
]
