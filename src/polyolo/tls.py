"""What a public listener needs to speak TLS: the operator's certificate, or one for trials.

A listener beyond loopback without TLS is refused: API keys would cross the network in clear.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from polyolo.errors import InvalidValueError

if TYPE_CHECKING:
    from cryptography import x509

SELF_SIGNED = "self-signed"
HSTS = ("strict-transport-security", "max-age=31536000")
"""Tells browsers to come by TLS only, for a year."""

_TRIAL = timedelta(days=90)  # a trial's length; whoever stays gets a real certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a certificate (with its chain) and its private key, PEM."""

    certificate: Path
    key: Path


def chosen(
    host: str, home: Path | None, mode: str | None, certificate: Path | None, key: Path | None
) -> Tls | None:
    """Return what a listener on `host` speaks TLS with; None for plain HTTP on loopback.

    mode: `self-signed` or None. home: where a self-signed certificate is kept. Raises
    InvalidValueError when TLS is needed and missing, or the files are no pair; OSError.
    """
    if mode not in (None, SELF_SIGNED):
        raise InvalidValueError(f"--tls must be {SELF_SIGNED}, not {mode!r}")
    if mode and (certificate or key):
        raise InvalidValueError("give either --tls self-signed or --tls-cert and --tls-key")
    if mode:
        if home is None:
            raise InvalidValueError("--tls self-signed needs a home; give --tls-cert and --tls-key")
        return self_signed(home / "tls", host)
    if (certificate is None) != (key is None):
        raise InvalidValueError("--tls-cert and --tls-key belong together; give both")
    if certificate is not None and key is not None:
        return _checked(Tls(certificate=certificate.absolute(), key=key.absolute()))
    if not loopback(host):
        raise InvalidValueError(
            f"listening on {host}, beyond this machine, needs TLS: give --tls-cert and --tls-key, "
            "or --tls self-signed for a trial"
        )
    return None


def loopback(host: str) -> bool:
    """Say whether only this machine can reach a listener on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """Return a name by which a client on this machine reaches a listener on `host`."""
    return "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104  # compared, not bound


def fingerprint(tls: Tls) -> str:
    """Return the SHA-256 of the certificate, as browsers and openssl show it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    found = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    return found.fingerprint(SHA256()).hex(":").upper()


def self_signed(folder: Path, host: str) -> Tls:
    """Return a certificate for `host` and this machine, kept in `folder` until it expires."""
    tls = Tls(certificate=folder / "cert.pem", key=folder / "key.pem")
    if not _still_good(tls, host):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the home, private too
        folder.mkdir(mode=0o700, exist_ok=True)
        _make(tls, host)
    return tls


def _names(host: str) -> list[str]:
    return [*dict.fromkeys(["localhost", "127.0.0.1", "::1", reachable(host)])]


def _still_good(tls: Tls, host: str) -> bool:
    from cryptography import x509

    if not tls.certificate.exists() or not tls.key.exists():
        return False
    found = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    said = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {str(name.value) for name in said}
    left = found.not_valid_after_utc - datetime.now(UTC)
    return left > timedelta(days=1) and known >= set(_names(host))


def _make(tls: Tls, host: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "polyolo, self-signed")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # a client's clock may be behind
        .not_valid_after(now + _TRIAL)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in _names(host)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    tls.key.unlink(missing_ok=True)
    descriptor = os.open(tls.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _checked(tls: Tls) -> Tls:
    for file in (tls.certificate, tls.key):
        if not file.is_file():
            raise InvalidValueError(f"{file} is not a file that exists")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        raise InvalidValueError(
            f"{tls.certificate} and {tls.key} are no certificate with its key ({error.reason})"
        ) from None
    return tls
