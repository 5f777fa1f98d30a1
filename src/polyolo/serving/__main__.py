"""Starts one tenant's runtime: `python -m polyolo.serving --spec FILE --socket PATH`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from polyolo.lifeline import die_with_parent, keep_memory_private
from polyolo.sealedfile import KEY_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m polyolo.serving", description=__doc__)
    parser.add_argument("--spec", type=Path, help="file with the runtime spec (JSON)")
    parser.add_argument("--ahead", action="store_true", help="start ahead of the spec")
    parser.add_argument("--socket", type=Path, help="Unix socket to listen on")
    parser.add_argument("--settings", type=Path, help="file with settings of models (JSON)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8800, help="TCP port to listen on")
    parser.add_argument("--models", type=Path, help="directory for models that are fetched")
    parser.add_argument("--storage", type=Path, help="where the tenant's own storage is mounted")
    parser.add_argument(
        "--stuck-after",
        type=float,
        default=10.0,
        help="seconds on one batch until a model counts as hung",
    )
    commands = parser.add_subparsers(dest="command", metavar="inspect FILE | compare FILE")
    inspect = commands.add_parser("inspect", help="print what a model file holds, as JSON")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--classes", action="append", default=[], help="a class name, in order")
    compare = commands.add_parser(
        "compare", help="compare two versions, as polyolo.comparejob says"
    )
    compare.add_argument("file", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command is None and asked.spec is None:
        parser.error("--spec FILE is missing")

    # Until the server has its own handler; the first process of a container has no default one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    die_with_parent()
    keep_memory_private()
    if asked.command == "inspect":
        from polyolo.serving.inspect import inspect_file

        return inspect_file(asked.file, asked.classes)

    if asked.command == "compare":
        from polyolo.serving.compare import compare_file

        return compare_file(asked.file)

    import uvloop

    from polyolo.serving import fetch, malloc
    from polyolo.serving.app import run
    from polyolo.serving.settings import Settings

    settings = Settings(
        spec=asked.spec.absolute(),
        ahead=asked.ahead,
        socket=asked.socket and asked.socket.absolute(),
        settings=asked.settings and asked.settings.absolute(),
        key=os.environ.pop(KEY_VARIABLE, ""),  # not for the environment of any child
        host=asked.host,
        port=asked.port,
        models=asked.models and asked.models.absolute(),
        storage=asked.storage and asked.storage.absolute(),
        token=os.environ.pop(fetch.TOKEN, ""),  # not for the models' processes
        stuck_after_s=asked.stuck_after,
    )
    malloc.configure()
    try:
        # Where the spec's paths begin; and a directory that gets another name takes us along.
        os.chdir(settings.spec.parent)
        uvloop.run(run(settings))
    except (OSError, ValueError) as error:
        print(f"polyolo.serving: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
