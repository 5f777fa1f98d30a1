"""The models that polyolo knows: those that ship with it, and one to fetch.

The bundled weights and sample boards are files of this package (see `pcb.md`, the model card);
`catalogue` names what others publish, `download` fetches it.
"""

from __future__ import annotations

from pathlib import Path

from polyolo.errors import NotFoundError

STANDARD = ("pcb", 2)
"""Name and version of the bundled model that a new tenant gets, unless the operator chooses."""

_HERE = Path(__file__).parent


def bundled(name: str, version: int) -> Path:
    """Return the file of a bundled model; raise NotFoundError, naming those that there are."""
    if (name, version) not in every_bundled():
        known = ", ".join(f"{name}:{version}" for name, version in every_bundled())
        raise NotFoundError(f"no model {name}:{version} ships with polyolo, only {known}")
    return _HERE / f"{name}-{version}.onnx"


def every_bundled() -> list[tuple[str, int]]:
    """Return name and version of every model that ships with polyolo."""
    parts = (path.stem.rpartition("-") for path in _HERE.glob("*-*.onnx"))
    return sorted((name, int(version)) for name, _, version in parts)


def sample_boards() -> list[Path]:
    """Return the pictures of circuit boards that ship with polyolo; the bundled models fit them."""
    return sorted((_HERE / "samples").glob("*.jpg"))
