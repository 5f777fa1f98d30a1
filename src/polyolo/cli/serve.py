"""`polyolo serve`, `gateway`, `control`: one process each, as a container runs it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter

from polyolo.cli.door import default_home
from polyolo.cli.signin import NO_SIGN_IN, SignIn
from polyolo.errors import InvalidValueError


def serve(
    *,
    spec: Path,
    settings: Path | None = None,
    socket: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8800,
) -> int:
    """Run one tenant's runtime: the models that a spec document names, behind HTTP and gRPC.

    What a request asks for counts first, then the settings file, then POLYOLO_CONFIDENCE,
    POLYOLO_IOU, POLYOLO_CLASSES, POLYOLO_MAX_DETECTIONS, POLYOLO_INPUT_SIZE, POLYOLO_ENGINE and
    POLYOLO_PRECISION in the environment, then the spec.

    Args:
        spec: The runtime spec document (JSON).
        settings: Settings of models (JSON), as in {"*": {"confidence": 0.4}, "city": {"iou": 0.6}};
            a change of the file is in force within a second.
        socket: Unix socket to listen on, instead of host and port; gRPC's is grpc.sock beside it.
        host: Address to listen on.
        port: Port to listen on; gRPC listens on the port behind it.
    """
    from polyolo.serving.__main__ import main

    where = ["--socket", str(socket)] if socket else ["--host", host, "--port", str(port)]
    said = ["--settings", str(settings)] if settings else []
    return main(["--spec", str(spec), *said, *where])


def gateway(
    *,
    control: str,
    host: str = "127.0.0.1",
    port: int = 8700,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    trusted_proxies: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    slots: int = 0,
    redis: Annotated[str | None, Parameter(env_var="POLYOLO_REDIS")] = None,
    scaler: str | None = None,
    scaler_peers: str | None = None,
    leave: float = 0.0,
    token: Annotated[str, Parameter(env_var="POLYOLO_GATEWAY_TOKEN", show=False)],
) -> int:
    """Run one gateway: the public door of a platform whose control plane runs elsewhere.

    Proves itself to the control plane with the token in POLYOLO_GATEWAY_TOKEN.

    Args:
        control: Where the control plane answers: `unix:/path/to/socket` or `http://host:port`.
        host: Address to listen on; beyond this machine only with TLS.
        port: Port to listen on; gRPC listens on the port behind it.
        tls_cert: Certificate with its chain, PEM.
        tls_key: The certificate's private key, PEM.
        trusted_proxies: Network (CIDR) of proxies whose X-Forwarded-For is believed; repeat for
            more. [default: nobody's]
        slots: Detections inside runtimes at once, of all tenants together, where the runtimes share
            one machine; 0: no bound.
        redis: URL of a Redis where gateways count rates together; in the environment if it holds
            a password. [default: each of N gateways grants 1/N of every rate]
        scaler: HOST:PORT on which KEDA asks for what is in flight, by gRPC in clear.
        scaler_peers: HOST:PORT of a name behind which all gateways answer there.
        leave: Seconds after SIGTERM in which everything goes on, while clients are asked to connect
            anew; 75 behind a load balancer, as long as gRPC's connections take.
        token: What this gateway proves itself with.
    """
    import uvloop

    from polyolo import tls
    from polyolo.gateway.app import run
    from polyolo.gateway.settings import Settings
    from polyolo.gateway.source import checked

    settings = Settings(
        host=host,
        port=port,
        tls=tls.chosen(host, None, None, tls_cert, tls_key),
        trusted_proxies=checked(trusted_proxies),
        control=control,
        scaler=scaler,
        scaler_peers=scaler_peers,
        leave_s=leave,
        token=token,
        slots=slots,
        redis=redis,
    )
    uvloop.run(run(settings))
    return 0


def control(
    *,
    home: Path | None = None,
    database: Annotated[str, Parameter(env_var="POLYOLO_DATABASE")] = "",
    store: str = "",
    standard_model: Path,
    audit_days: int = 365,
    public_url: str = "http://127.0.0.1:8700",
    registration: Literal["open", "invite", "closed"] | None = None,
    sign_in: SignIn = NO_SIGN_IN,
    plans: Annotated[Path | None, Parameter(env_var="POLYOLO_PLANS")] = None,
    isolation: Literal["best-effort", "strict"] = "best-effort",
    converter: Annotated[str, Parameter(env_var="POLYOLO_CONVERTER")] = "",
    listen: str = "",
    driver: Literal["process", "kubernetes"] = "process",
    cluster: Path | None = None,
) -> int:
    """Run the control plane on the Unix socket `run/control.sock` of its home.

    Gateways prove themselves with the token in POLYOLO_GATEWAY_TOKEN. Several control planes may
    share a database, each in a home of its own with the same operator.key and master.key, and
    one --store: all answer, one of them runs the tenants' runtimes.

    Args:
        home: Directory of everything that is kept. [default: ~/.local/share/polyolo]
        database: SQLAlchemy URL; in the environment if it holds a password.
            [default: SQLite in the home]
        store: Where the model files are: a directory, or s3://bucket/prefix with AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL in the environment.
            [default: artifacts in the home]
        audit_days: How long the audit log is kept, 184 to 365 days.
        plans: TOML file of the plans that tenants may be given, one table [[plan]] each, the usual
            one first. [default: default, free and pro]
        isolation: strict: do not start where a layer of the runtimes' sandbox is missing (see
            `polyolo doctor`); best-effort: say so, and go on with the others.
        converter: What turns uploaded .pt files into ONNX (see `polyolo up --help`).
        standard_model: ONNX file of the model that every tenant may call as `standard`.
        public_url: Where clients reach the platform; access tokens are issued for it.
        registration: Who may register: everybody (open), whoever was invited, or nobody (closed).
            [default: open if the public URL is of this machine, else invite]
        listen: HOST:PORT for gateways of other machines, for a network of the platform's own.
        driver: Where tenants' runtimes live: processes of this machine, or pods of the cluster
            that KUBECONFIG or this pod's service account names.
        cluster: What is known of that cluster (JSON, see docs/operations.md).
    """
    import uvloop

    from polyolo import telemetry
    from polyolo.cli.cluster import in_cluster
    from polyolo.control.app import run
    from polyolo.control.plans import OFFERED, read
    from polyolo.control.settings import ControlSettings, Registration
    from polyolo.tls import loopback

    here = loopback(urlsplit(public_url).hostname or "")
    telemetry.configure_logging("control")
    settings = ControlSettings(
        home=(home or default_home()).absolute(),
        database=database,
        store=store,
        audit_days=audit_days,
        public_url=public_url,
        registration=Registration(registration or ("open" if here else "invite")),
        secure_cookies=public_url.startswith("https:"),
        provider=sign_in.provider(),
        converter=converter,
        standard=standard_model.absolute(),
        plans=read(plans) if plans else OFFERED,
        strict_isolation=isolation == "strict",
        listen=_address(listen),
        **in_cluster(driver, cluster),
    )
    if token := os.environ.get("POLYOLO_GATEWAY_TOKEN"):
        settings = replace(settings, gateway_token=token)
    uvloop.run(run(settings))
    return 0


def _address(written: str) -> tuple[str, int] | None:
    if not written:
        return None
    host, _, port = written.rpartition(":")
    if not port.isdigit():
        raise InvalidValueError(f"--listen takes HOST:PORT, not {written}")
    return host.strip("[]"), int(port)
