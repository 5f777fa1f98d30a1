"""Amounts as Kubernetes writes them itself, so that what was applied reads back the same."""

from __future__ import annotations

import math

_WORTH = {
    name: base**power
    for base, first, names in ((1000.0, -1, "m  k M G T P E"), (1024.0, 1, "Ki Mi Gi Ti Pi Ei"))
    for power, name in enumerate(names.split(" "), first)
}
_UNITS = ("Mi", "Gi", "Ti", "Pi")


def cores(amount: float) -> str:
    """Return cores in the canonical form, to the next thousandth: 0.25 as 250m, 2.0 as 2."""
    thousandths = math.ceil(round(amount * 1000, 6))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def size(amount: float) -> str:
    """Return bytes in the canonical form, to the next MiB: 2147483648 as 2Gi."""
    count = math.ceil(amount / (1 << 20))
    if count == 0:
        return "0"
    unit = 0
    while count % 1024 == 0 and unit < len(_UNITS) - 1:
        count //= 1024
        unit += 1
    return f"{count}{_UNITS[unit]}"


def read(written: str) -> float:
    """Return what an amount says, in cores or bytes; 0 for what is none."""
    number = written.rstrip("mkMGTPEi")
    try:
        return float(number) * _WORTH[written.removeprefix(number)]
    except (ValueError, KeyError):
        return 0.0
