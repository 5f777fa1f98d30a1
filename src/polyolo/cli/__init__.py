"""The command line: `polyolo NOUN VERB`, one module a noun.

Commands are named here by string and imported when they run, so that `polyolo --help` and
`polyolo detect` never load a server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from cyclopts import App, CycloptsError, Group, UnknownCommandError

from polyolo import __version__
from polyolo.cli.output import complain
from polyolo.errors import PolyoloError

USE = Group("Use", sort_key=1)
OPERATE = Group("Operate", sort_key=2)
PROCESSES = Group("Processes, one each for a container", sort_key=3)

_COMMANDS = (
    ("up:up", USE, "Run the whole platform on this machine."),
    ("demo:demo", USE, "Watch two tenants get their pictures detected, then clean up."),
    ("detect:detect", USE, "Detect objects in pictures."),
    ("models:app", USE, "Push, switch and tune a tenant's models."),
    ("keys:app", USE, "A tenant's API keys."),
    ("accounts:register", USE, "Make an account and a tenant, and get a first API key."),
    ("oauth:app", USE, "A tenant's OAuth clients and their access tokens."),
    ("usage:usage", USE, "What a tenant has used."),
    ("limits:limits", USE, "What a tenant may use."),
    ("audit:audit", USE, "Who did what, and whether that record is untouched."),
    ("bench:bench", USE, "Load-test a service: images a second, 50th and 99th percentile."),
    ("tenants:app", OPERATE, "Create, suspend and delete tenants."),
    ("doctor:doctor", OPERATE, "What isolation this host really gives."),
    ("releases:app", OPERATE, "Releases of the runtimes' program, and who is on them."),
    ("accounts:users", OPERATE, "A tenant's users."),
    ("accounts:invitations", OPERATE, "Invite people into a tenant, or to register."),
    ("serve:serve", PROCESSES, "One tenant's runtime."),
    ("serve:gateway", PROCESSES, "The gateway, the only public door."),
    ("serve:control", PROCESSES, "The control plane."),
)
"""module:function, the group of the help page it is listed in, what it says there."""


def _name(place: str) -> str:
    module, _, attribute = place.partition(":")
    return module if attribute == "app" else attribute


def _build() -> App:
    app = App(
        name="polyolo",
        version=__version__,
        help="A YOLO service of its own for every tenant. Clients read POLYOLO_URL and "
        "POLYOLO_API_KEY, operators POLYOLO_OPERATOR_KEY or --home.",
        result_action="return_value",
        help_format="markdown",
        exit_on_error=False,
        print_error=False,
    )
    for place, group, says in _COMMANDS:
        app.command(f"polyolo.cli.{place}", name=_name(place), group=group, help=says)
    return app


def _wrong_usage(error: CycloptsError) -> str:
    chain = error.command_chain or ()
    if isinstance(error, UnknownCommandError) and not chain:
        # Its own text would import every command to see whether it may be named.
        token = (error.unused_tokens or [""])[0]
        said = f'there is no command "{token}"'
        near = get_close_matches(token, [_name(place) for place, _, _ in _COMMANDS], n=1)
    else:
        said, near = str(error).strip().rstrip("."), []
    hint = f', did you mean "{near[0]}"?' if near else ";"
    return f"{said}{hint} see `{' '.join(('polyolo', *chain))} --help`"


def _missing(error: BaseException | None) -> str | None:
    """Return the library whose absence an import failed for; None when it is not that."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            library = error.name.partition(".")[0]
            return None if library == "polyolo" else library
        error = error.__cause__
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.

    arguments: those of the process, when None.
    """
    try:
        result = _build()(arguments)
    except CycloptsError as error:
        complain(_wrong_usage(error))
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except PolyoloError as error:
        return complain(error.detail)
    except BrokenPipeError:  # `polyolo ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit complains
        return 141
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ImportError as error:
        if (library := _missing(error)) is None:
            raise
        return complain(
            f"this command needs {library}, which is not installed: pip install 'polyolo[all]'"
        )
    return result if isinstance(result, int) else 0
