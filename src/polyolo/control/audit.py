"""The audit log's mathematics: what an entry's hash covers, how chains grow, what is signed.

Every entry has a digest of all that it says, its place included. Two chains run over the
digests: one over all entries, one over those of its tenant, so that a tenant can verify its own
without seeing anybody else's. The last entry of each transaction is signed with both; signed
marks say where each chain ends, so that a cut-off end is missed, and where it begins after
entries beyond their retention were deleted.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

GENESIS = "0" * 64
"""What a chain's first entry follows."""
WHOLE = "*"
"""Name of the chain over all entries; no tenant is called so."""
_FORMAT = "polyolo.audit.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened, before it has its place. Never a secret, never an image."""

    at: float
    """Unix seconds."""
    kind: str
    """change (committed with it), call (an API call, answered) or detect."""
    actor: str
    action: str
    tenant: str | None
    resource: str
    detail: str = ""
    source: str = ""
    """Address that the call came from; empty for what the platform does by itself."""
    status: int = 0
    """HTTP status of the answer; 0 for a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The end (head) or the beginning after pruning (anchor) of one chain."""

    chain: str
    kind: str
    number: int
    """Of the chain's last entry up to here, from 1; 0: none."""
    hash: str


class Signer:
    """The platform's Ed25519 key for its audit log. Any thread may use it."""

    def __init__(self, private: bytes) -> None:
        """Take the 32 bytes of the private key."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self._public = self._private.public_key()

    @property
    def public(self) -> str:
        """Return the public key, base64, for who verifies an export elsewhere."""
        return base64.b64encode(self._public.public_bytes_raw()).decode()

    def sign(self, message: bytes) -> str:
        """Return the signature in hex."""
        return self._private.sign(message).hex()

    def signed(self, message: bytes, signature: str) -> bool:
        """Say whether `signature` is ours, over just these bytes."""
        try:
            self._public.verify(bytes.fromhex(signature), message)
        except (InvalidSignature, ValueError):
            return False
        return True


def new_private_key() -> bytes:
    """Return a new signing key."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def digest(entry: Entry, number: int) -> str:
    """Return the SHA-256 of all that an entry says, as JSON in ASCII without spaces.

    number: its place among its tenant's entries. Its place among all is in the chain over all:
    a tenant need not learn how much others do.
    """
    said = [
        *(_FORMAT, number, float(entry.at), entry.kind, entry.actor, entry.action),
        *(entry.tenant, entry.resource, entry.detail, entry.source, entry.status),
    ]
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()


def link(before: str, digest_: str) -> str:
    """Return a chain's hash after one more entry."""
    return hashlib.sha256(bytes.fromhex(before) + bytes.fromhex(digest_)).hexdigest()


def of_entry(seq: int, whole: str, chain: str, number: int, hash_: str) -> bytes:
    """Return what the signature of an entry covers: where both of its chains stand."""
    return _message("entry", seq, whole, chain, number, hash_)


def of_mark(mark: Mark) -> bytes:
    """Return what the signature of a mark covers."""
    return _message("mark", mark.kind, mark.chain, mark.number, mark.hash)


def cleaned(text: str, limit: int) -> str:
    """Return `text` as every database stores it unchanged: no NUL, no half character, not long."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()[:limit]


def _message(*parts: str | int) -> bytes:
    return json.dumps([_FORMAT, *parts], separators=(",", ":")).encode()
