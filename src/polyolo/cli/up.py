"""`polyolo up`: the whole platform on this machine, from nothing to a door that is open."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import uvloop
from cyclopts import Parameter

from polyolo import __version__, models, telemetry, web
from polyolo.cli import succession
from polyolo.cli.cluster import in_cluster
from polyolo.cli.door import default_home
from polyolo.cli.gateways import Door, Gateways
from polyolo.cli.output import say
from polyolo.cli.signin import NO_SIGN_IN, SECRET, SignIn
from polyolo.cli.succession import Handed
from polyolo.control import app as control
from polyolo.control.plans import OFFERED, read
from polyolo.control.settings import ControlSettings, Registration
from polyolo.drivers.precedence import AHEAD
from polyolo.errors import InvalidValueError
from polyolo.gateway.source import checked
from polyolo.lifeline import die_with_parent
from polyolo.sandbox.cgroups import Group
from polyolo.sandbox.layers import Isolation, Layer
from polyolo.serving.cpus import usable_cpus
from polyolo.tls import Tls, chosen, fingerprint, loopback, reachable

_SLOTS_A_CPU = 3
"""Detections inside runtimes at once for each CPU: one that computes, and what keeps it busy while
others are on their way there and back."""
_CALLS_S = 5.0
"""For calls of the control API to end before another program goes on; meanwhile others wait."""


def up(
    *,
    host: str = "127.0.0.1",
    port: int = 8700,
    home: Path | None = None,
    database: Annotated[str, Parameter(env_var="POLYOLO_DATABASE")] = "",
    standard_model: str = ":".join(map(str, models.STANDARD)),
    tls: Literal["self-signed"] | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    public_url: str | None = None,
    registration: Literal["open", "invite", "closed"] | None = None,
    audit_days: int = 365,
    plans: Annotated[Path | None, Parameter(env_var="POLYOLO_PLANS")] = None,
    isolation: Literal["best-effort", "strict"] = "best-effort",
    slots: int | None = None,
    warm: int = 2,
    redis: Annotated[str | None, Parameter(env_var="POLYOLO_REDIS")] = None,
    store: str = "",
    converter: Annotated[str, Parameter(env_var="POLYOLO_CONVERTER")] = "",
    trusted_proxies: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    release: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    sign_in: SignIn = NO_SIGN_IN,
    driver: Literal["process", "kubernetes"] = "process",
    cluster: Path | None = None,
) -> int:
    """Run the whole platform on this machine: control plane, gateway, tenants' runtimes.

    Ready when GET /readyz answers 200. SIGTERM and Ctrl-C drain it and exit with status 0. SIGUSR2
    has it go on as the release that is installed by now, without a request refused.

    Args:
        host: Address to listen on; beyond this machine only with TLS.
        port: Port to listen on; gRPC listens on the port behind it.
        home: Directory of everything that is kept, made when missing; holds the operator's key
            in `operator.key`. [default: ~/.local/share/polyolo]
        database: SQLAlchemy URL; in the environment if it holds a password.
            [default: SQLite in the home]
        standard_model: What every tenant may call as `standard`: a bundled model as NAME:VERSION,
            or an ONNX file.
        tls: `self-signed`: speak TLS with a certificate made here, for trials.
        tls_cert: Speak TLS with this certificate (and its chain), PEM.
        tls_key: The certificate's private key, PEM.
        public_url: Where clients reach the platform; access tokens are issued for it.
            [default: the address listened on]
        registration: Who may register: everybody (open), whoever was invited, or nobody (closed).
            [default: open on this machine only, else invite]
        audit_days: How long the audit log is kept, 184 to 365 days.
        plans: TOML file of the plans that tenants may be given, one table [[plan]] each, the usual
            one first. [default: default, free and pro]
        isolation: strict: do not start where a layer of the runtimes' sandbox is missing (see
            `polyolo doctor`); best-effort: say so, and go on with the others.
        slots: Detections inside runtimes at once, of all tenants together; the others wait for
            their turn. 0: no bound. [default: three for each CPU]
        warm: Runtimes kept ready for tenants that wake, about 100 MB each. 0: none; then the first
            answer takes half a second.
        redis: URL of a Redis where gateways count rates together; in the environment if it holds
            a password. [default: each of N gateways grants 1/N of every rate]
        store: Where the model files are kept: a directory, or s3://bucket/prefix with
            AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL in the
            environment. [default: artifacts in the home]
        converter: What turns uploaded .pt files into ONNX, in a sandbox: the Python of an
            environment in which you have installed ultralytics (AGPL-3.0), or a command that
            takes an input's and an output's path. [default: .pt files are refused]
        trusted_proxies: Network (CIDR) of proxies whose X-Forwarded-For is believed; repeat for
            more. [default: nobody's]
        release: Another release of the runtimes' program, NAME=/path/to/python of an environment
            that it is installed in; repeat for more. See `polyolo releases`.
        driver: Where tenants' runtimes live: processes of this machine, or pods of the cluster
            that KUBECONFIG or this pod's service account names.
        cluster: What is known of that cluster (JSON, see docs/operations.md).
    """
    before = succession.received()
    die_with_parent()
    telemetry.configure_logging("control")
    home = (home or default_home()).absolute()
    proxies = checked(trusted_proxies)
    speaking = chosen(host, home, tls, tls_cert, tls_key)
    settings = ControlSettings(
        home=home,
        registration=Registration(registration or ("open" if loopback(host) else "invite")),
        secure_cookies=speaking is not None or (public_url or "").startswith("https:"),
        provider=sign_in.provider(),
        database=database,
        audit_days=audit_days,
        releases=dict(map(_release, release)),
        store=store,
        converter=converter,
        standard=_model_file(standard_model),
        standard_label=standard_model,
        plans=read(plans) if plans else OFFERED,
        strict_isolation=isolation == "strict",
        warm=warm,
        succeeds=before is not None,
        **in_cluster(driver, cluster),
    )
    if before is not None:
        settings = replace(settings, gateway_token=before.door.token)
    if succession.rehearses():
        control.rehearse(settings)
        return 0
    if redis:
        os.environ["POLYOLO_REDIS"] = redis  # for the gateway, off its command line
    flags = (
        *("--slots", str(_SLOTS_A_CPU * usable_cpus() if slots is None else slots)),
        *(word for network in proxies for word in ("--trusted-proxy", network)),
    )
    after = uvloop.run(_run(settings, host, port, public_url, speaking, flags, before))
    if after is not None:
        succession.go_on(after)
    return 0


def _release(given: str) -> tuple[str, tuple[str, ...]]:
    name, _, python = given.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) or not os.access(python, os.X_OK):
        raise InvalidValueError(
            f"--release {given}: write NAME=/path/to/python, with a name of letters, digits, dots "
            "and dashes and a Python that can be run"
        )
    return name, (python, "-m", "polyolo.serving")


def _model_file(standard_model: str) -> Path:
    name, colon, version = standard_model.rpartition(":")
    if colon and version.isdigit() and not Path(standard_model).exists():
        return models.bundled(name, int(version))
    path = Path(standard_model)
    if not path.is_file():
        raise InvalidValueError(
            f"{standard_model} is neither a bundled model (like pcb:2) nor a file that exists"
        )
    return path.absolute()


async def _run(
    settings: ControlSettings,
    host: str,
    port: int,
    public_url: str | None,
    tls: Tls | None,
    flags: tuple[str, ...],
    before: Handed | None,
) -> Handed | None:
    """Run until told to stop; return what is handed over where another program goes on."""
    stop, upgrade = web.signalled(), web.signalled(signal.SIGUSR2)
    succession.take_signals()
    if before is not None and before.stopping:
        stop.set()
    after: Handed | None = None
    # The sockets are ours, so that a gateway's end closes no door.
    door = socket.socket(fileno=before.door.socket) if before else web.bind(host=host, port=port)
    port = door.getsockname()[1]
    behind = web.reserve(host, port + 1)  # gRPC's; the gateways listen there
    name, scheme = reachable(host), "https" if tls else "http"
    url = f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"
    settings = replace(settings, public_url=public_url or url)
    async with control.opened(settings) as plane:
        inner = socket.socket(fileno=before.control) if before else web.bind(path=settings.socket)
        done, leaving = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(control.serve(plane, done, inner=inner.dup(), retire=leaving))
        arguments = (
            *("--control", f"unix:{settings.socket}"),
            *(("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)) if tls else ()),
            *flags,
        )
        given = before.door if before else Door(socket=door.fileno(), token=settings.gateway_token)
        group = _weighed(plane.plane.isolation, given.serving)
        gateways = Gateways(given, arguments, _environment(), group)
        gateways.open()
        say(f"polyolo {__version__} listens on {url}, for gRPC on {port + 1}")
        say(f"home {settings.home}")
        if tls is not None:
            say(f"certificate {tls.certificate}, SHA-256 {fingerprint(tls)}")
        if await _until(serving, stop, upgrade, gateways):
            telemetry.logger("up").info("the next gateway serves; control ends what it has in hand")
            await plane.leave()
            telemetry.logger("up").info("control's calls wait for the next program")
            plane.release()
            leaving.set()
            await asyncio.wait({serving}, timeout=_CALLS_S)
            serving.cancel()
            after = Handed(door=gateways.handed(), control=inner.detach())
            door.detach()
        else:
            await gateways.close()  # first: what is in flight is answered, usage handed over
            if group is not None:
                group.remove()
            plane.release()
            done.set()
            await serving
    behind.close()
    if after is None:
        return None
    succession.hold_signals()
    await asyncio.sleep(0)  # for those that have come before
    return replace(after, stopping=stop.is_set())


def _weighed(isolation: Isolation, serving: int) -> Group | None:
    """Have this process weigh as much as one runtime, and return the control group of gateways,
    which go first: everybody waits for the door, and it works for a millisecond at a time.

    serving: pid of the gateway that is there already; 0 for none. None where there can be no
    control groups. They are removed with the others.
    """
    groups = isolation.groups
    if groups is None or Layer.CPU not in isolation:
        return None
    try:
        groups.join()
        door = (groups.of(serving) if serving else None) or groups.make([Layer.CPU])
        door.weigh(AHEAD * (os.cpu_count() or 1))
    except OSError as error:
        telemetry.logger("up").warning("the gateway does not go first", reason=str(error))
        return None
    return door


async def _until(
    serving: asyncio.Task[None], stop: asyncio.Event, upgrade: asyncio.Event, gateways: Gateways
) -> bool:
    """Wait for the end; say whether it is another program that goes on, its gateway ready."""
    stopping = asyncio.create_task(stop.wait())
    while True:
        asked = asyncio.create_task(upgrade.wait())
        await asyncio.wait({serving, stopping, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if serving.done() or stop.is_set():
            return False
        upgrade.clear()
        try:
            await asyncio.to_thread(succession.rehearse)
            if stop.is_set():
                return False
            await gateways.succeed()
        except OSError as error:
            telemetry.logger("up").error(
                "the upgrade failed, the platform goes on as it was", reason=str(error)
            )
        else:
            return True


def _environment() -> dict[str, str]:
    """Return the environment of a gateway, which has no use for the platform's secrets."""
    secrets = ("POLYOLO_OPERATOR_KEY", "POLYOLO_MASTER_KEY", "POLYOLO_DATABASE", SECRET)
    store = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return {name: value for name, value in os.environ.items() if name not in (*secrets, *store)}
