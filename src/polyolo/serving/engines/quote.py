"""Quotes a foreign library's error to a tenant: its gist, and nothing of this machine."""

from __future__ import annotations

import re

_MOST = 200  # characters


def quote(error: Exception) -> str:
    """Return an error's gist: one line, no paths, at most 200 characters."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", "", text)
    text = re.sub(r"(?:/[\w.+-]+){2,}(?::\d+)?", "…", text)
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
