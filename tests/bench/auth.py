"""What authentication costs a gateway that knows 10,000 tenants and 20,000 keys.

    python -m tests.bench.auth

Prints microseconds a request (median and 99th percentile) for API keys, tokens seen before and
tokens seen for the first time, with and without what it takes to let the request in; how long
`polyolo up` takes from its start to answering with such a database (SQLite), beside an empty one;
and what one change costs control and a gateway, as a change and as a whole.
"""

from __future__ import annotations

import hashlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import httpx
import msgspec
import uvloop
from joserfc.jwk import ECKey

from polyolo import telemetry, tokens
from polyolo.control import db
from polyolo.control import secrets as sealing
from polyolo.control.access import OPERATOR
from polyolo.control.decide import Desired, Memory, Wanted, decide
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.service import audit, snapshot
from polyolo.control.service import tenants as tenant_service
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.gateway import usage
from polyolo.gateway.activity import Activity
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.quotas import Quotas
from polyolo.gateway.rates import Rates
from polyolo.gateway.reception import Reception
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import address_of
from polyolo.gateway.turns import Turns
from polyolo.gateway.upstream import Upstream
from polyolo.gateway.usage import Meter
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
from tests.e2e.platform import Platform

TENANTS, KEYS, TOKENS, REQUESTS = 10_000, 20_000, 2_000, 20_000
URL = "https://yolo.example"
SOURCE = ip_address("10.1.2.3")
OTHERS = [
    *((b"host", b"yolo.example"), (b"accept", b"*/*"), (b"user-agent", b"bench/1")),
    *((b"content-type", b"image/jpeg"), (b"content-length", b"100000")),
]
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


def fill(home: Path) -> bytes:
    """Put so many tenants, keys and clients into a home's database; return the first one's key.

    The tenants sleep: a start of runtimes is not measured here. The first one is suspended.
    """
    engine = db.open_engine(f"sqlite:///{home / 'polyolo.db'}")
    migrate(engine)
    audit.opened(engine, Vault(sealing.master(home)))
    tenants = [f"t_{n:010d}" for n in range(TENANTS)]
    secret = f"pk_{0:012d}_{secrets.token_urlsafe(32)}".encode()
    shared = {"scopes": list(SCOPES), "created_at": 0.0, "name": ""}
    shared["digest"] = hashlib.sha256(secret).hexdigest()
    with db.writing(engine) as connection:
        connection.execute(
            db.tenants.insert(),
            [
                {"id": t, "name": t, "plan": "default", "state": state, "created_at": 0.0}
                for t, state in zip(tenants, ["suspended", *["active"] * TENANTS], strict=False)
            ],
        )
        asleep = [Desired(tenant=t, wanted=Wanted.RUNNING, replicas=0) for t in tenants]
        rows = [
            {
                "tenant": one.tenant,
                "generation": 1,
                "status": msgspec.to_builtins(decide(one, None, Memory(), 0.0).status),
            }
            for one in asleep
        ]
        connection.execute(db.runtimes.insert(), rows)
        keys = [{"id": f"{n:012d}", "tenant": tenants[n % TENANTS], **shared} for n in range(KEYS)]
        connection.execute(db.api_keys.insert(), keys)
        clients = [{"id": f"oc_{t[-12:]}", "tenant": t, **shared} for t in tenants]
        connection.execute(db.oauth_clients.insert(), clients)
    engine.dispose()
    return secret


def start(*, filled: bool) -> float:
    """Return the seconds that the platform takes from its start to answering."""
    platform = Platform()
    try:
        platform.start()  # what only the first start of a home does
        platform.stop()
        secret = fill(platform.home) if filled else b""
        began = time.perf_counter()
        platform.start()
        took = time.perf_counter() - began
        if filled:  # 403, not 401: the door knows the key and its tenant
            bearer = {"authorization": f"Bearer {secret.decode()}"}
            answer = httpx.post(f"{platform.url}/v1/detect", content=b"x", headers=bearer)
            assert answer.status_code == 403, answer.text
    finally:
        platform.close()
    return took


def changes(home: Path) -> None:
    """Print what control and a gateway need for one change, with so many tenants and keys."""
    fill(home)
    engine = db.open_engine(f"sqlite:///{home / 'polyolo.db'}")
    vault = Vault(sealing.master(home))
    ledger = Ledger(engine, audit.opened(engine, vault))
    signer = Signer(ledger, vault, URL)
    directory = Directory(Settings(control="unix:/none", token="t"))
    assert follow(ledger, signer, directory, whole=True)[2] > 1_000_000
    tenant = f"t_{7:010d}"
    for name, whole in (("whole", True), ("only what changed", False)):
        rounds = []
        for _ in range(5):
            tenant_service.set_state(ledger, OPERATOR, tenant, TenantState.ACTIVE)
            tenant_service.set_state(ledger, OPERATOR, tenant, TenantState.SUSPENDED)
            rounds.append(follow(ledger, signer, directory, whole=whole))
        control, gateway, size = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"a change, told {name:17}  control {control:7.2f} ms   gateway {gateway:7.2f} ms   "
            f"{size / 1e3:9,.1f} kB"
        )
    assert (len(directory.tenants), len(directory.keys)) == (TENANTS, KEYS)
    engine.dispose()


def follow(
    ledger: Ledger, signer: Signer, directory: Directory, *, whole: bool
) -> tuple[float, float, int]:
    """Have a gateway put the newest in force; return milliseconds of control and gateway, bytes."""
    plans = (Plan(name="default"),)
    start = time.process_time()
    after = None if whole else directory.revision
    document = msgspec.json.encode(snapshot.build(ledger, plans, signer, after=after))
    built = time.process_time()
    directory.swap(msgspec.json.decode(document, type=Snapshot))
    return (built - start) * 1e3, (time.process_time() - built) * 1e3, len(document)


def measured(credentials: list[bytes], ask: Callable[[bytes], object]) -> str:
    """Return the median and the 99th percentile of `ask`, microseconds, in words."""
    took = []
    for n in range(max(REQUESTS, len(credentials))):
        credential = credentials[n * 7919 % len(credentials)]
        start = time.perf_counter_ns()
        ask(credential)
        took.append((time.perf_counter_ns() - start) / 1e3)
    return words(took)


def words(took: list[float]) -> str:
    """Return the median and the 99th percentile of microseconds."""
    took.sort()
    return f"p50 {took[len(took) // 2]:6.1f} µs   p99 {took[len(took) * 99 // 100]:6.1f} µs"


async def let_in(directory: Directory, keys: list[bytes], *, limited: bool) -> str:
    """Return what it costs to let a request in: from its headers to its turn, if that comes at
    once; and to close it, with metrics and usage record."""
    settings = Settings(control="unix:/none", token="t", slots=6)
    metrics = telemetry.Metrics()
    quotas = Quotas()
    internal = Upstream(settings.control)
    ledger = usage.Ledger(settings, internal, metrics, quotas)
    meter = Meter(ledger, metrics)
    reception = Reception(
        settings,
        directory,
        meter,
        rates=Rates(),
        quotas=quotas,
        turns=Turns(settings.slots, meter),
        activity=Activity(),
    )
    plan = Plan(name="default")
    if limited:
        plan = Plan(name="p", requests_per_second=1000.0, images_per_month=10**9)
    directory.tenants = {t: replace(r, plan=plan) for t, r in directory.tenants.items()}
    entering, closing = [], []
    for n in range(REQUESTS):
        headers = [*OTHERS, (b"authorization", b"Bearer " + keys[n * 7919 % len(keys)])]
        start = time.perf_counter_ns()
        async with reception.visit(headers, SOURCE, {}, billed=True) as visit, visit.turn:
            inside = time.perf_counter_ns()
            visit.status = 200
        entering.append((inside - start) / 1e3)
        closing.append((time.perf_counter_ns() - inside) / 1e3)
    internal.close()
    return f"{words(entering)}   closed {words(closing)}"


def main() -> None:
    """Measure and print."""
    for filled in (False, True):
        what = "so many tenants and keys" if filled else "none"
        taken = sorted(start(filled=filled) for _ in range(3))
        print(f"`polyolo up` answers with {what} after", *(f"{one:.2f}" for one in taken), "s")
    document, keys, signed = encoded()
    directory = Directory(Settings(control="unix:/none", token="t"))
    began = time.perf_counter()
    directory.swap(msgspec.json.decode(document, type=Snapshot))
    print(
        f"snapshot of {len(document) / 1e6:.1f} MB in force in {time.perf_counter() - began:.2f} s"
    )
    with tempfile.TemporaryDirectory() as home:
        changes(Path(home))

    def ask(credential: bytes) -> None:
        scope = {
            "client": ("10.1.2.3", 1),
            "headers": [*OTHERS, (b"authorization", b"Bearer " + credential)],
        }
        found = address_of(scope, ())
        assert found == SOURCE
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
    for name, limited in (("without limits", False), ("with rate and quota", True)):
        print(f"let in, {name:19} {uvloop.run(let_in(directory, keys, limited=limited))}")


if __name__ == "__main__":
    main()
