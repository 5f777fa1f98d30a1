"""Keeps this process's memory flat: what it asks of glibc's malloc, which by default hoards.

After the first large picture malloc would take the next ones from its heap and keep up to 64 MB
of it for good. A model shares its machine with those of other tenants.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 8 * 1024 * 1024
"""Bytes from which a block goes back to the system as soon as it is freed. Above the tensor of
640 x 640 pixels (5 MB), whose pages would otherwise be cleared by the kernel for each picture."""


def configure() -> None:
    """Have large blocks returned when they are freed. Process-wide: for a composition root."""
    with contextlib.suppress(AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return what a load needed only for a moment; 4 MB of YOLOX-Nano's, 16 MB of a YOLOv8n's."""
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
