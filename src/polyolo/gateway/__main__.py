"""Starts one gateway process: `python -m polyolo.gateway --control unix:/path --port 8700`."""

from __future__ import annotations

from polyolo.lifeline import die_with_parent

die_with_parent()  # before the imports that take time: an orphan must not outlive even those

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import uvloop  # noqa: E402

from polyolo import tls  # noqa: E402
from polyolo.errors import PolyoloError  # noqa: E402
from polyolo.gateway.app import run  # noqa: E402
from polyolo.gateway.settings import Settings  # noqa: E402
from polyolo.gateway.source import checked  # noqa: E402


def settings(arguments: list[str], environment: dict[str, str]) -> Settings:
    """Return the settings that flags and environment give; exits with 2 for wrong usage."""
    parser = argparse.ArgumentParser("polyolo.gateway", description="The public door of polyolo.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8700, help="port to listen on")
    parser.add_argument("--control", required=True, help="unix:/path/to/socket or http://host:port")
    parser.add_argument("--listen", type=int, help="descriptor of a socket that listens already")
    parser.add_argument("--door", default="", help="name of what listens there already")
    parser.add_argument("--succeeds", type=int, help="descriptor to say on that it has taken over")
    parser.add_argument("--tls-cert", type=Path, help="certificate with its chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="the certificate's private key, PEM")
    parser.add_argument(
        "--trusted-proxy", action="append", default=[], help="network whose word is believed"
    )
    parser.add_argument(
        "--slots", type=int, default=0, help="detections inside runtimes at once; 0: no bound"
    )
    parser.add_argument("--scaler", help="HOST:PORT on which KEDA asks, by gRPC in clear")
    parser.add_argument("--scaler-peers", help="HOST:PORT behind which all gateways answer it")
    flags = parser.parse_args(arguments)
    token = environment.get("POLYOLO_GATEWAY_TOKEN")
    if not token:
        parser.error("set POLYOLO_GATEWAY_TOKEN to the token that the control plane expects")
    return Settings(
        host=flags.host,
        port=flags.port,
        listen=flags.listen,
        door=flags.door,
        succeeds=flags.succeeds,
        tls=tls.chosen(flags.host, None, None, flags.tls_cert, flags.tls_key),
        trusted_proxies=checked(flags.trusted_proxy),
        slots=flags.slots,
        redis=environment.get("POLYOLO_REDIS") or None,
        control=flags.control,
        scaler=flags.scaler,
        scaler_peers=flags.scaler_peers,
        token=token,
    )


def main() -> None:
    """Run one gateway process."""
    try:
        uvloop.run(run(settings(sys.argv[1:], dict(os.environ))))
    # The address is taken, TLS is missing, or the like: a sentence, not a traceback.
    except (OSError, PolyoloError) as error:
        sys.exit(f"polyolo.gateway: {error}")


if __name__ == "__main__":
    main()
