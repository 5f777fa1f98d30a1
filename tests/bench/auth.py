"""What authentication costs a gateway that knows 10,000 tenants and 20,000 keys.

    python -m tests.bench.auth

Prints microseconds a request (median and 99th percentile) for API keys, tokens seen before and
tokens seen for the first time, and how long a start takes with them: control builds the snapshot
from its database (SQLite), a gateway puts it in force.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import msgspec
from joserfc.jwk import ECKey

from polyolo import tokens
from polyolo.control import db
from polyolo.control import secrets as sealing
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.service import audit, runtimes, snapshot
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import address_of
from polyolo.tokens import Claims
from polyolo.types import (
    ClientEntry,
    KeyEntry,
    Phase,
    Plan,
    Snapshot,
    TenantRoute,
    TenantState,
    TokenRules,
)

TENANTS, KEYS, TOKENS, REQUESTS = 10_000, 20_000, 2_000, 20_000
URL = "https://yolo.example"
SCOPES = ("detect", "models:read", "models:write", "usage:read", "keys:write", "settings:write")


def encoded() -> tuple[bytes, list[bytes], list[bytes]]:
    """Return a snapshot as control sends it, its API keys, and some access tokens."""
    signing = ECKey.generate_key("P-256")
    kid = signing.thumbprint()
    rules = TokenRules(
        issuer=URL, audience=URL, keys=({**signing.as_dict(private=False), "kid": kid},)
    )
    plan = Plan(name="default")
    routes = tuple(
        TenantRoute(
            tenant=f"t_{n:010d}",
            name=f"tenant-{n}",
            state=TenantState.ACTIVE,
            plan=plan,
            phase=Phase.READY,
            endpoints=(f"unix:/run/{n}",),
        )
        for n in range(TENANTS)
    )
    keys = [f"pk_{n:012d}_{secrets.token_urlsafe(32)}".encode() for n in range(KEYS)]
    entries = tuple(
        KeyEntry(
            id=f"{n:012d}",
            digest=hashlib.sha256(key).hexdigest(),
            tenant=f"t_{n % TENANTS:010d}",
            scopes=SCOPES,
            sources=("10.0.0.0/8", "192.0.2.0/24") if n % 10 == 0 else (),
        )
        for n, key in enumerate(keys)
    )
    clients = tuple(
        ClientEntry(id=f"oc_{n:012d}", tenant=f"t_{n:010d}", scopes=SCOPES) for n in range(TENANTS)
    )
    now = int(time.time())
    signed = [
        tokens.sign(
            Claims(
                id=f"j{n}",
                client=clients[n].id,
                tenant=clients[n].tenant,
                scopes=("detect",),
                issued_at=now,
                expires_at=now + 900,
            ),
            rules,
            kid,
            signing,
        ).encode()
        for n in range(TOKENS)
    ]
    whole = Snapshot(revision=1, tenants=routes, keys=entries, clients=clients, tokens=rules)
    return msgspec.json.encode(whole), keys, signed


def from_database(home: Path) -> float:
    """Return the seconds that control needs for a snapshot of so many tenants, keys, clients."""
    engine = db.open_engine(f"sqlite:///{home / 'bench.db'}")
    migrate(engine)
    vault = Vault(sealing.master(home))
    ledger = Ledger(engine, audit.opened(engine, vault))
    signer = Signer(ledger, vault, URL)
    tenants = [f"t_{n:010d}" for n in range(TENANTS)]
    shared = {"scopes": list(SCOPES), "created_at": 0.0, "digest": "0" * 64, "name": ""}
    with db.writing(engine) as connection:
        connection.execute(
            db.tenants.insert(),
            [
                {"id": t, "name": t, "plan": "default", "state": "active", "created_at": 0.0}
                for t in tenants
            ],
        )
        blank = [
            {"tenant": t, "generation": 1, "status": runtimes.blank(t, Phase.STARTING)}
            for t in tenants
        ]
        connection.execute(db.runtimes.insert(), blank)
        keys = [{"id": f"{n:012d}", "tenant": tenants[n % TENANTS], **shared} for n in range(KEYS)]
        connection.execute(db.api_keys.insert(), keys)
        clients = [{"id": f"oc_{t[-12:]}", "tenant": t, **shared} for t in tenants]
        connection.execute(db.oauth_clients.insert(), clients)
    start = time.perf_counter()
    built = snapshot.build(ledger, (Plan(name="default"),), signer)
    msgspec.json.encode(built)
    took = time.perf_counter() - start
    assert (len(built.tenants), len(built.keys), len(built.clients)) == (TENANTS, KEYS, TENANTS)
    engine.dispose()
    return took


def measured(credentials: list[bytes], ask: Callable[[bytes], object]) -> str:
    """Return the median and the 99th percentile of `ask`, microseconds, in words."""
    took = []
    for n in range(max(REQUESTS, len(credentials))):
        credential = credentials[n * 7919 % len(credentials)]
        start = time.perf_counter_ns()
        ask(credential)
        took.append((time.perf_counter_ns() - start) / 1e3)
    took.sort()
    return f"p50 {took[len(took) // 2]:6.1f} µs   p99 {took[len(took) * 99 // 100]:6.1f} µs"


def main() -> None:
    """Measure and print."""
    document, keys, signed = encoded()
    directory = Directory(Settings(control="unix:/none", token="t"))
    start = time.perf_counter()
    directory.swap(msgspec.json.decode(document, type=Snapshot))
    print(
        f"snapshot of {len(document) / 1e6:.1f} MB in force in {time.perf_counter() - start:.2f} s"
    )
    with tempfile.TemporaryDirectory() as home:
        print(f"snapshot built by control in {from_database(Path(home)):.2f} s")
    source = ip_address("10.1.2.3")
    others = [
        *((b"host", b"yolo.example"), (b"accept", b"*/*"), (b"user-agent", b"bench/1")),
        *((b"content-type", b"image/jpeg"), (b"content-length", b"100000")),
    ]

    def ask(credential: bytes) -> None:
        scope = {
            "client": ("10.1.2.3", 1),
            "headers": [*others, (b"authorization", b"Bearer " + credential)],
        }
        found = address_of(scope, ())
        assert found == source
        offered = presented(scope["headers"])
        assert not directory.distrust()
        who = authenticate(offered, directory.keys, directory.book, time.time())
        authorise(who, directory.tenants, ranges=directory.ranges.get(who.id, ()), source=found)

    first = []
    for token in signed:
        start_ns = time.perf_counter_ns()
        ask(token)
        first.append((time.perf_counter_ns() - start_ns) / 1e3)
    first.sort()
    half, last = first[len(first) // 2], first[len(first) * 99 // 100]
    print(f"API key             {measured(keys, ask)}")
    print(f"token, seen before  {measured(signed, ask)}")
    print(f"token, first time   p50 {half:6.1f} µs   p99 {last:6.1f} µs")


if __name__ == "__main__":
    main()
