"""Envelope encryption of what must not be read from a stolen database or backup.

A value is sealed by a data key (AES-256-GCM, one key a tenant); a data key is wrapped by the
master key, which never touches the database. What a ciphertext belongs to, table, column, row
and tenant, is authenticated with it, so that one put in another place does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VARIABLE = "POLYOLO_MASTER_KEY"
"""Environment variable that stands for the file: 32 bytes in base64."""
FILE = "master.key"
"""Name of the master key's file in the home (mode 0600)."""
NEXT = "master.key.next"
"""Name of the file of the key that a rotation is about to put in force."""

_NONCE = 12  # bytes, as NIST SP 800-38D wants it; a data key seals far fewer than 2^32 values
_KEY = 32  # bytes: AES-256


class SealedError(Exception):
    """A sealed value does not open: it was changed, moved, or the key is another one."""


class KeyService(Protocol):
    """Who holds the master key: a file here, a key management service elsewhere."""

    def wrap(self, data_key: bytes, context: bytes) -> str:
        """Return `data_key` encrypted, as text. context: authenticated with it."""

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the data key; raise SealedError when it does not open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a sealed value belongs to. tenant: its id, or "" for the platform."""

    table: str
    column: str
    row: str
    tenant: str

    def context(self) -> bytes:
        """Return the bytes that are authenticated with the value; no two places share them."""
        parts = ("polyolo.1", self.table, self.column, self.row, self.tenant)
        return b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)


class LocalMaster:
    """A KeyService whose master key is in this process's memory."""

    def __init__(self, key: bytes) -> None:
        """Take 32 bytes."""
        self.id = hashlib.sha256(b"polyolo master key id" + key).hexdigest()[:16]
        """Tells keys apart without telling anything of them."""
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return f"LocalMaster({self.id})"

    def wrap(self, data_key: bytes, context: bytes) -> str:
        """Return `data_key` encrypted, as text (see KeyService)."""
        return f"{self.id}.{_encrypt(self._cipher, data_key, context)}"

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the data key (see KeyService)."""
        key, _, sealed = wrapped.partition(".")
        if key != self.id:
            raise SealedError(
                f"the database's secrets were sealed with the master key {key}, not with "
                f"{self.id}: put back the right {FILE}, or set {VARIABLE}"
            )
        return _decrypt(self._cipher, sealed, context)


def new_data_key() -> bytes:
    """Return a key for values."""
    return AESGCM.generate_key(bit_length=_KEY * 8)


def seal(data_key: bytes, value: bytes, place: Place) -> str:
    """Return `value` encrypted for that place only, as text."""
    return _encrypt(AESGCM(data_key), value, place.context())


def unseal(data_key: bytes, sealed: str, place: Place) -> bytes:
    """Return the value; raise SealedError when it was changed or belongs elsewhere."""
    return _decrypt(AESGCM(data_key), sealed, place.context())


def master(home: Path, environment: Mapping[str, str] | None = None) -> LocalMaster:
    """Return the master key of POLYOLO_MASTER_KEY, else of the home's file, made if missing.

    Raises OSError when what is there is no key.
    """
    given = (os.environ if environment is None else environment).get(VARIABLE)
    if given:
        return LocalMaster(_parsed(given, VARIABLE))
    file = home / FILE
    if not file.exists():
        write_key(file, new_key())
    return read_key(file)


def new_key() -> str:
    """Return a new master key as its file holds it."""
    return base64.b64encode(secrets.token_bytes(_KEY)).decode()


def read_key(file: Path) -> LocalMaster:
    """Return the master key in a file. Raises OSError when it holds none."""
    return LocalMaster(_parsed(file.read_text(encoding="ascii", errors="replace"), str(file)))


def write_key(file: Path, key: str) -> None:
    """Write a key file, mode 0600, whole or not at all."""
    descriptor, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as writing:
            writing.write(key + "\n")
            writing.flush()
            os.fsync(writing.fileno())
        Path(fresh).rename(file)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # what it seals must never outlive it
    finally:
        os.close(directory)


def _parsed(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY:
        raise OSError(f"{where} holds no master key: it must be 32 bytes in base64")
    return key


def _encrypt(cipher: AESGCM, value: bytes, context: bytes) -> str:
    nonce = os.urandom(_NONCE)
    return base64.b64encode(nonce + cipher.encrypt(nonce, value, context)).decode()


def _decrypt(cipher: AESGCM, sealed: str, context: bytes) -> bytes:
    try:
        raw = base64.b64decode(sealed, validate=True)
        return cipher.decrypt(raw[:_NONCE], raw[_NONCE:], context)
    except (InvalidTag, ValueError):  # binascii.Error is a ValueError
        raise SealedError(
            "a sealed value does not open: it was changed or put in another place"
        ) from None
