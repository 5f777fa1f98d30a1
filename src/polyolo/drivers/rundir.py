"""The directory of one runtime: what is in it, and how it is written so that a crash is harmless.

`spec.json` · `models/<sha256>.onnx` · `io/runtime.sock`, `io/grpc.sock` · `runtime.json` (which
process) · `release` (of its program) · `log` · `tmp/` · and marks: `ready` (has answered since
its start), `stopping` (was asked to end; holds the moment after which it is killed), `exit.json`
(which process ended, and how).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from polyolo.drivers.replicas import name_of
from polyolo.sandbox.kernel import Identity
from polyolo.types import RuntimeSpec, VersionSpec

LOG_LIMIT = 1_000_000
"""Bytes of a runtime's log before it is cut; a start writes about 1 kB, a failure 10 kB."""
_SUN_PATH = 107
"""Bytes in the path of a Unix socket (sun_path, 108 with its closing zero)."""

T = TypeVar("T")

Put = Callable[[str, Path], None]
"""Puts the file that a VersionSpec's uri names where the path says, whole or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a runtime's process ended."""

    process: Identity
    reason: str


def made(root: Path) -> None:
    """Make the place of all these directories. Raises OSError where none can be used there."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    longest = len(os.fsencode(root / "t_1234567890~99" / "io" / "runtime.sock"))
    if longest > _SUN_PATH:
        raise OSError(
            f"the path {root} is {longest - _SUN_PATH} bytes too long for the sockets in it; "
            "choose a home with a shorter path"
        )


class RunDirectory:
    """One runtime's directory. Any file in it may be missing, broken or of another kind."""

    def __init__(self, root: Path, tenant: str | None, number: int = 1) -> None:
        """Name a directory; nothing is made yet.

        tenant: None for a runtime that is nobody's yet. number: of the copy. Raises ValueError
        for a tenant's id that is not fit to be a directory's name.
        """
        self.tenant = tenant
        self.number = number
        self.path = root / name_of(tenant, number)
        self.spec_file = self.path / "spec.json"
        self.io = self.path / "io"
        self.socket = self.io / "runtime.sock"
        self.log = self.path / "log"
        self.models = self.path / "models"

    def exists(self) -> bool:
        """Say whether there is a trace of the runtime."""
        return self.path.exists()

    def process(self) -> Identity | None:
        """Return which process was started last."""
        return self._read("runtime.json", Identity)

    def exit(self) -> Exit | None:
        """Return how the last process ended, if that was seen."""
        return self._read("exit.json", Exit)

    def spec(self) -> RuntimeSpec | None:
        """Return the document that was written last."""
        return self._read("spec.json", RuntimeSpec)

    def release(self) -> str:
        """Return the release that the process was started with; empty for the platform's own."""
        return self._read("release", str) or ""

    def kill_at(self) -> float | None:
        """Return when a runtime that was asked to end is killed (CLOCK_MONOTONIC seconds)."""
        return self._read("stopping", float)

    def was_ready(self) -> bool:
        """Say whether the process has answered since its start."""
        return (self.path / "ready").is_file()

    def write_process(self, process: Identity) -> None:
        """Record which process was started."""
        self._write("runtime.json", process)

    def write_release(self, release: str) -> None:
        """Record which release is to be started."""
        self._write("release", release)

    def write_exit(self, ended: Exit) -> None:
        """Record how a process ended; does nothing when the directory is gone."""
        with suppress(OSError):
            self._write("exit.json", ended)

    def write_kill_at(self, moment: float) -> None:
        """Record that the runtime was asked to end, and until when it may."""
        self._write("stopping", moment)

    def write_ready(self) -> None:
        """Record that the process has answered."""
        with suppress(OSError):  # gone meanwhile
            (self.path / "ready").touch()

    def prepare(self) -> None:
        """Make the directory as a start needs it, whatever was left in it."""
        if self.path.is_symlink() or self.path.is_file():
            self.path.unlink()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self.path.iterdir():
            if entry != self.log and entry != self.models:
                _delete(entry)
        for wanted, kind in ((self.models, Path.is_dir), (self.log, Path.is_file)):
            if wanted.is_symlink() or not kind(wanted):
                _delete(wanted)
        self.models.mkdir(exist_ok=True)
        for own in (self.io, self.path / "tmp"):
            own.mkdir(mode=0o700)
        # What is in here is for the runtime's user, which may be another one; the directory
        # itself is closed to all but its owner.
        self.path.chmod(0o700)
        self.models.chmod(0o755)
        self.cut_log()

    def write_spec(self, spec: RuntimeSpec, put: Put) -> None:
        """Put the spec's model files and then the document in place. put: places one file."""
        for version in _versions(spec):
            target = self.models / _file_name(version.digest)
            if not target.exists() or not target.stat().st_size:  # empty: see Artifacts.put
                put(version.uri, target)
            for uri in version.golden:
                if not (target := self.path / _golden(uri)).exists():
                    with suppress(FileNotFoundError):  # faster arithmetic is not worth a start
                        put(uri, target)
        local = replace(
            spec,
            models=tuple(
                replace(
                    model,
                    versions=tuple(
                        replace(
                            version,
                            uri=f"models/{_file_name(version.digest)}",
                            golden=tuple(map(_golden, version.golden)),
                        )
                        for version in model.versions
                    ),
                )
                for model in spec.models
            ),
        )
        self._write("spec.json", local)

    def drop_models(self, spec: RuntimeSpec) -> None:
        """Delete model files that `spec` does not name."""
        named = {_file_name(version.digest) for version in _versions(spec)}
        named |= {Path(_golden(one)).name for version in _versions(spec) for one in version.golden}
        with suppress(OSError):
            for entry in self.models.iterdir():
                if entry.name not in named:
                    _delete(entry)

    def cut_log(self) -> None:
        """Move a log that has grown too long aside, keeping one older part."""
        with suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT:
                # Copied and cut, not renamed: the process goes on appending to this very file.
                shutil.copyfile(self.log, self.path / "log.1")
                os.truncate(self.log, 0)

    def become(self, other: RunDirectory) -> None:
        """Give the directory the other one's name, in its place; its log is kept as the older."""
        with suppress(OSError):
            if other.log.is_file() and not other.log.is_symlink():
                other.log.rename(self.path / "log.1")
        other.delete()
        self.path.rename(other.path)

    def delete(self) -> None:
        """Delete the directory."""
        _delete(self.path)

    def _read(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, ValueError):
            return None

    def _write(self, name: str, content: object) -> None:
        # Not synced: after a power cut no process is left that this would be about.
        fresh = self.path / f".{name}.{os.getpid()}.{id(content)}"
        try:
            fresh.write_bytes(msgspec.json.encode(content))
            fresh.chmod(0o644)
            fresh.rename(self.path / name)
        except OSError:
            with suppress(OSError):
                fresh.unlink()
            raise


def _versions(spec: RuntimeSpec) -> Iterable[VersionSpec]:
    return (version for model in spec.models for version in model.versions)


def _file_name(digest: str) -> str:
    return f"{digest}.onnx"


def _golden(uri: str) -> str:
    """Return where a golden picture is put; its uri ends with its digest."""
    return f"models/{Path(uri).stem}.golden"


def place(source: Path, target: Path) -> None:
    """Link a file to `target`, or copy it where the file system cannot; never half of it."""
    fresh = target.with_suffix(".part")
    fresh.unlink(missing_ok=True)
    try:
        try:
            fresh.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, fresh)
        if os.geteuid() == 0:  # then the runtime is another user
            fresh.chmod(0o644)
        fresh.rename(target)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
