"""The audit log's mathematics: what an entry's hash covers, how chains grow, what is signed.

Every entry has a digest of all that it says, its place included. Two chains run over the
digests: one over all entries, one over those of its tenant, so that a tenant can verify its own
without seeing anybody else's. The last entry of each transaction is signed with both; signed
marks say where each chain ends, so that a cut-off end is missed, and where it begins after
entries beyond their retention were deleted.

What an entry says in words (resource, detail, source) goes into its digest as a commitment: a
hash together with a random salt. An erasure takes words and salt away and leaves the commitment,
which tells nothing without the salt; the chains hold as before. A signed mark says of which
tenant that may be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS = "0" * 64
"""What a chain's first entry follows."""
WHOLE = "*"
"""Name of the chain over all entries; no tenant is called so."""
_FORMAT = "polyolo.audit.2"

HEAD, ANCHOR, ERASED = "head", "anchor", "erased"
"""Kinds of marks: where a chain ends, where it begins after pruning, whose words may be gone."""


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
    """Something signed about one chain."""

    chain: str
    kind: str
    """HEAD, ANCHOR or ERASED."""
    number: int
    """Of the chain's last entry up to here, from 1; 0: none."""
    hash: str


class Verifier:
    """The platform's Ed25519 key for its audit log, as far as everybody may have it."""

    def __init__(self, public: str) -> None:
        """Take the public key in base64. Raises ValueError when it is none."""
        self._public = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        self.public = public
        """The key, for who verifies an export elsewhere."""

    def signed(self, message: bytes, signature: str) -> bool:
        """Say whether `signature` is of this key, over just these bytes."""
        try:
            self._public.verify(bytes.fromhex(signature), message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer(Verifier):
    """The platform's key with its private half. Any thread may use it."""

    def __init__(self, private: bytes) -> None:
        """Take the 32 bytes of the private key."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        super().__init__(base64.b64encode(self._private.public_key().public_bytes_raw()).decode())

    def sign(self, message: bytes) -> str:
        """Return the signature in hex."""
        return self._private.sign(message).hex()

    def attest(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return `document` with our public key and signature, for who checks it elsewhere.

        Its numbers must be integers: other programs write 1.0 as 1.
        """
        named = {**document, "public_key": self.public}
        return {**named, "signature": self.sign(of_document(named))}


def attested(document: Mapping[str, Any]) -> bool:
    """Say whether a document is as the holder of the key that it names signed it.

    Whether that key is the platform's is for the reader to see.
    """
    try:
        return Verifier(document["public_key"]).signed(of_document(document), document["signature"])
    except (ValueError, KeyError, TypeError):
        return False


def new_private_key() -> bytes:
    """Return a new signing key."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def new_salt() -> str:
    """Return what keeps a commitment from being guessed: 128 random bits in hex."""
    return secrets.token_hex(16)


def commitment(entry: Entry, salt: str) -> str:
    """Return the SHA-256 of what an entry says in words, as JSON in ASCII without spaces."""
    return _sha256(salt, entry.resource, entry.detail, entry.source)


def digest(entry: Entry, number: int, words: str) -> str:
    """Return the SHA-256 of all that an entry says, as JSON in ASCII without spaces.

    number: its place among its tenant's entries. Its place among all is in the chain over all:
    a tenant need not learn how much others do. words: the commitment to what it says in words.
    """
    who = (entry.actor, entry.action, entry.tenant, entry.status)
    return _sha256(number, float(entry.at), entry.kind, *who, words)


def wordless(entry: Entry) -> Entry:
    """Return what is left of an entry after its tenant was erased."""
    return replace(entry, resource="", detail="", source="")


def link(before: str, digest_: str) -> str:
    """Return a chain's hash after one more entry."""
    return hashlib.sha256(bytes.fromhex(before) + bytes.fromhex(digest_)).hexdigest()


def of_entry(seq: int, whole: str, chain: str, number: int, hash_: str) -> bytes:
    """Return what the signature of an entry covers: where both of its chains stand."""
    return _message("entry", seq, whole, chain, number, hash_)


def of_mark(mark: Mark) -> bytes:
    """Return what the signature of a mark covers."""
    return _message("mark", mark.kind, mark.chain, mark.number, mark.hash)


def of_document(document: Mapping[str, Any]) -> bytes:
    """Return what the signature of a document covers: everything else in it."""
    said = {name: value for name, value in document.items() if name != "signature"}
    return _message("document", json.dumps(said, separators=(",", ":"), sort_keys=True))


def cleaned(text: str, limit: int) -> str:
    """Return `text` as every database stores it unchanged: no NUL, no half character, not long."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()[:limit]


def _message(*parts: object) -> bytes:
    return json.dumps([_FORMAT, *parts], separators=(",", ":")).encode()


def _sha256(*parts: object) -> str:
    return hashlib.sha256(_message(*parts)).hexdigest()
