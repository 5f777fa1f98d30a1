"""polyolo: a YOLO service of its own for every tenant."""

__version__ = "0.1.0"
