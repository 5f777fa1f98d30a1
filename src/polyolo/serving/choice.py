"""Chooses engine and arithmetic for a model: measures what there is, and lets faster arithmetic in
only after it has found the same boxes.

Each candidate is tried in a process of its own (`trial`): what it leaves behind in memory goes
with it, and one that crashes or hangs has only lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from polyolo.errors import InvalidValueError, ModelRefusedError
from polyolo.serving import engines
from polyolo.serving.engines import EXACT
from polyolo.serving.loading import usual_engine
from polyolo.serving.quality import Seen, compare
from polyolo.serving.wire import Opening
from polyolo.types import DetectionSettings

AUTO = "auto"
_WORTH = 1.1
"""How much faster than the usual engine another must be: less is within the noise of one trial,
and a second library costs memory and time to load."""
_TRIAL_S = 20.0
"""Seconds a trial may take. The largest YOLO opens in 5 and looks at a picture in 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a model is to be opened with."""

    engine: str
    arithmetic: str = EXACT
    speed: str = ""
    """See ModelStatus, as the next."""
    quality: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What came of trying a candidate."""

    failed: str = ""
    """Why it cannot be used; else empty, and the rest is set."""
    rate: float = 0.0
    """Pictures a second with all streams busy."""
    faster: tuple[str, ...] = ()
    """Other arithmetics that the engine has on this machine."""
    seen: list[Seen] = []  # msgspec copies it
    """Of each golden picture."""
    blind: str = ""
    """Why the golden pictures cannot be looked at; else empty."""


_NO_GOLDEN = "float32 is used: there are no golden pictures to compare faster arithmetic on"

Try = Callable[[Opening], Trial]
"""Tries the engine and the arithmetic that an Opening names."""


def choose(data: bytes, opening: Opening, try_: Try | None = None) -> Chosen:
    """Return engine and arithmetic for a model's bytes, as its opening asks.

    Blocks for a second and more for each candidate where there are several, else not at all.
    Raises ModelRefusedError when nothing that is installed can serve it, InvalidValueError for
    settings that are none.
    """
    if opening.precision not in ("exact", "fast"):
        raise InvalidValueError(f"precision is exact or fast, not {opening.precision[:80]!r}")
    usual = usual_engine(data)
    if opening.arithmetic:
        return Chosen(engine=opening.engine or usual, arithmetic=opening.arithmetic)
    names = engines.able(data) if opening.engine == AUTO else ()
    names = names or (usual if opening.engine in ("", AUTO) else opening.engine,)
    fast = opening.precision == "fast"
    if len(names) == 1 and not (fast and opening.golden):
        return Chosen(engine=names[0], quality=_NO_GOLDEN if fast else "")
    attempt = try_ or _in_a_process
    trials = {
        (name, EXACT): attempt(replace(opening, engine=name, arithmetic=EXACT)) for name in names
    }
    if not fast or not opening.golden:
        return _best(trials, _NO_GOLDEN if fast else "")
    if blind := next((trial.blind for trial in trials.values() if trial.blind), ""):
        return _best(trials, f"float32 is used: {blind}")
    for name in names:
        for kind in trials[name, EXACT].faster:
            trials[name, kind] = attempt(replace(opening, engine=name, arithmetic=kind))
    nothing = f"{' and '.join(names)} compute nothing faster than float32 on this machine"
    return _best(trials, nothing if len(trials) == len(names) else "")


def _best(trials: dict[tuple[str, str], Trial], quality: str) -> Chosen:
    exact = {key: trial for key, trial in trials.items() if key[1] == EXACT and not trial.failed}
    if not exact:
        raise ModelRefusedError(next(iter(trials.values())).failed)
    first, reference = next(iter(exact.items()))
    best = max(exact, key=lambda key: exact[key].rate)
    if exact[best].rate < _WORTH * reference.rate:
        best = first
    said = [quality] if quality else []
    least = _WORTH * exact[best].rate
    chosen = best
    for key, trial in sorted(trials.items(), key=lambda item: -item[1].rate):
        if key[1] == EXACT:
            continue
        name = " ".join(key)
        if trial.failed:
            said.append(f"{name} failed: {trial.failed}")
        elif trial.rate < least:
            said.append(f"{name} is not faster than float32")
        else:
            found = compare(reference.seen, trial.seen, DetectionSettings().confidence)
            if found.objection:
                said.append(f"{name} refused, {found.objection} ({found})")
            else:
                said.append(f"{name} accepted ({found})")
                chosen = key
                break
    return Chosen(
        engine=chosen[0], arithmetic=chosen[1], speed=_speeds(trials), quality="; ".join(said)
    )


def _speeds(trials: dict[tuple[str, str], Trial]) -> str:
    return ", ".join(
        f"{' '.join(key)} " + (f"{trial.rate:.1f}/s" if not trial.failed else "failed")
        for key, trial in trials.items()
    )


def _in_a_process(opening: Opening) -> Trial:
    try:
        done = subprocess.run(  # our own module
            [sys.executable, "-m", "polyolo.serving.trial"],
            input=msgspec.msgpack.encode(opening),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"POLYOLO_PARENT": str(os.getpid())},
            timeout=_TRIAL_S,
            check=False,
        )
        return msgspec.msgpack.decode(done.stdout, type=Trial)
    except subprocess.TimeoutExpired:
        return Trial(failed=f"it took longer than {_TRIAL_S:.0f} s")
    except msgspec.DecodeError:
        return Trial(failed=f"it ended its process (status {done.returncode})")
