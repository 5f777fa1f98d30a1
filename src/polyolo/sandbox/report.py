"""Tells people what a host's sandbox is worth: every layer, whether it is there, and why not."""

from __future__ import annotations

import os

from polyolo.resources import HostIsolation, IsolationLayer
from polyolo.sandbox.layers import GUARDS, Isolation, Layer

ON, MISSING, NOT_NEEDED = "on", "missing", "not needed"


def report(isolation: Isolation, *, strict: bool = False) -> HostIsolation:
    """Return the state of every layer. strict: whether the platform would not do without one."""
    return HostIsolation(
        complete=not lacking(isolation),
        strict=strict,
        layers=tuple(
            IsolationLayer(
                layer=layer.value,
                state=_state(isolation, layer),
                guards=GUARDS[layer],
                why=isolation.missing.get(layer, ""),
            )
            for layer in Layer
        ),
    )


def lacking(isolation: Isolation) -> list[str]:
    """Return a sentence's part for each layer that is missing and needed, with the reason."""
    return [
        f"{layer.value} ({why})"
        for layer, why in isolation.missing.items()
        if _state(isolation, layer) == MISSING
    ]


def _state(isolation: Isolation, layer: Layer) -> str:
    if layer in isolation:
        return ON
    return NOT_NEEDED if layer is Layer.ACCOUNT and os.geteuid() != 0 else MISSING
