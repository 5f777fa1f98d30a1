"""What a gateway is told: whole, or what was changed since; both give the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from polyolo import months
from polyolo.control import db
from polyolo.control.access import OPERATOR
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import (
    audit,
    keys,
    limits,
    oauth,
    runtimes,
    snapshot,
    tenants,
    touches,
    usage,
)
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.types import Phase, Plan, RuntimeStatus, Snapshot, TenantState, UsageRecord
from tests.integration.control_plane import database_url

PLANS = (Plan(name="default"), Plan(name="free", images_per_month=50))


class World:
    """A control plane's ledger, gateways that follow it, and things that happen."""

    def __init__(self, engine: Any, seed: int) -> None:
        vault = Vault(LocalMaster(bytes(32)))
        self.now = 1_770_000_000.0
        self.ledger = Ledger(engine, audit.opened(engine, vault), clock=self.clock)
        self.signer = Signer(self.ledger, vault, "http://x")
        self.chance = random.Random(seed)
        self.made = 0
        self.records = 0
        self.deltas = 0
        self.known: list[str] = []
        self.gateways = [Directory(Settings(control="unix:/x", token="t")) for _ in range(3)]
        for gateway in self.gateways:
            gateway.swap(self.snapshot())

    def clock(self) -> float:
        self.now += 0.25
        return self.now

    def snapshot(self, after: int | None = None) -> Snapshot:
        built = snapshot.build(self.ledger, PLANS, self.signer, after=after, gateways=2)
        return msgspec.json.decode(msgspec.json.encode(built), type=Snapshot)

    def any(self) -> str:
        return self.chance.choice(self.known)

    # --- What happens ---

    def create(self) -> None:
        self.made += 1
        plan = self.chance.choice(["default", "free"])
        found = tenants.create(self.ledger, OPERATOR, f"n{self.made}", plan, PLANS)
        self.known.append(found.id)

    def delete(self) -> None:
        tenant = self.any()
        self.known.remove(tenant)
        tenants.delete(self.ledger, OPERATOR, tenant)
        if self.chance.random() < 0.7:
            tenants.forget(self.ledger, tenant)

    def suspend(self) -> None:
        state = self.chance.choice(list(TenantState))
        tenants.set_state(self.ledger, OPERATOR, self.any(), state)

    def add_key(self) -> None:
        sources = ["10.0.0.0/8"] if self.chance.random() < 0.5 else []
        keys.create(
            self.ledger,
            OPERATOR,
            self.any(),
            name="k",
            scopes=("detect",),
            expires_in=None,
            sources=sources,
        )

    def revoke_key(self) -> None:
        tenant = self.any()
        live = [key for key in keys.every(self.ledger, tenant) if key.revoked_at is None]
        if live:
            keys.revoke(self.ledger, OPERATOR, tenant, self.chance.choice(live).id)

    def add_client(self) -> None:
        oauth.create(self.ledger, OPERATOR, self.any(), "c", ("detect",))

    def limit(self) -> None:
        rate = self.chance.choice([None, 1.5, 7])
        limits.change(self.ledger, OPERATOR, self.any(), {"requests_per_second": rate}, PLANS)

    def plan(self) -> None:
        plan = self.chance.choice(["default", "free"])
        limits.set_plan(self.ledger, OPERATOR, self.any(), plan, PLANS)

    def observe(self) -> None:
        tenant = self.any()
        phase = self.chance.choice(list(Phase))
        seen = RuntimeStatus(tenant=tenant, phase=phase, endpoints=(f"unix:/{self.made}",))
        runtimes.record(self.ledger, {tenant: seen})

    def use(self) -> None:
        batch = []
        for _ in range(self.chance.randrange(1, 4)):
            self.records += 1
            batch.append(
                UsageRecord(
                    id=str(self.records), tenant=self.any(), at=self.now, status=200, images=9
                )
            )
        usage.take(self.ledger, [*batch, batch[0]], PLANS)

    def follow(self, gateway: Directory) -> None:
        """Have a gateway put in force what was changed since its revision."""
        news = self.snapshot(after=gateway.revision)
        self.deltas += news.since is not None
        gateway.swap(news)


def in_force(gateway: Directory) -> dict[str, Any]:
    """Return all that a gateway knows, but for how many pictures were used: that is told in
    another way, and only when a quota is used up in this one."""
    routes = {tenant: msgspec.to_builtins(route) for tenant, route in gateway.tenants.items()}
    for route in routes.values():
        limit = route["plan"]["images_per_month"]
        route["used up"] = bool(limit) and route.pop("images_used") >= limit
        route.pop("images_used", None)
    return {
        "revision": gateway.revision,
        "tenants": routes,
        "keys": dict(gateway.keys),
        "ranges": dict(gateway.ranges),
        "clients": dict(gateway.book._clients.by_id),
        "rules": gateway.book._rules,
        "of": {name: sorted(ids) for name, ids in gateway._entries._of.items() if ids},
    }


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    engine = db.open_engine(database_url(tmp_path) or f"sqlite:///{tmp_path / 'x.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("seed", range(3))
def test_what_was_changed_since_gives_the_whole(engine: Any, seed: int):
    """Through random histories, gateways that follow now and then know what a new one knows."""
    world = World(engine, seed)
    happenings: list[Callable[[], None]] = [
        *(world.create, world.delete, world.suspend, world.add_key, world.revoke_key),
        *(world.add_client, world.limit, world.plan, world.observe, world.use, world.use),
    ]
    for _ in range(5):
        world.create()
    for _ in range(60):
        for _ in range(world.chance.randrange(1, 5)):
            world.chance.choice(happenings)()
            if len(world.known) < 3:
                world.create()
        gateway = world.chance.choice(world.gateways)
        world.follow(gateway)
        fresh = Directory(Settings(control="unix:/x", token="t"))
        fresh.swap(world.snapshot())
        assert in_force(gateway) == in_force(fresh)
    assert world.deltas == 60


def test_only_what_was_changed_is_told(engine: Any):
    """One key of one tenant among many: that tenant, with its keys, and nobody else."""
    world = World(engine, 0)
    for _ in range(5):
        world.create()
    gateway = world.gateways[0]
    world.follow(gateway)
    tenant = world.known[2]
    keys.create(
        world.ledger, OPERATOR, tenant, name="k", scopes=("detect",), expires_in=None, sources=[]
    )
    news = world.snapshot(after=gateway.revision)
    assert [route.tenant for route in news.tenants] == [tenant]
    assert {key.tenant for key in news.keys} == {tenant}
    assert len(news.keys) == 2
    assert news.gone == ()
    gateway.swap(news)
    nothing = world.snapshot(after=gateway.revision)
    assert (nothing.tenants, nothing.keys, nothing.gone) == ((), (), ())
    tenants.delete(world.ledger, OPERATOR, tenant)
    assert world.snapshot(after=gateway.revision).gone == (tenant,)


def test_who_knows_too_little_or_too_much_gets_everything(engine: Any, monkeypatch):
    """Before the record of changes begins, or after a backup was restored: everything."""
    monkeypatch.setattr(touches, "KEPT", 5)
    world = World(engine, 0)
    gateway = world.gateways[0]
    for _ in range(3):
        world.create()
    assert world.snapshot(after=gateway.revision).since == gateway.revision
    assert world.snapshot(after=10**6).since is None
    gone = world.known.pop()
    tenants.delete(world.ledger, OPERATOR, gone)
    tenants.forget(world.ledger, gone)
    for _ in range(10):
        world.limit()
    last = world.known.pop()
    tenants.delete(world.ledger, OPERATOR, last)
    tenants.forget(world.ledger, last)  # and of who was gone long before, nothing is known
    with world.ledger.reading() as connection:
        rows = connection.execute(db.touched.select()).all()
    assert gone not in {row.tenant for row in rows}
    assert world.snapshot(after=gateway.revision).since is None


def test_a_change_of_another_revision_is_refused():
    """A gateway that missed something does not guess; it asks for everything."""
    gateway = Directory(Settings(control="unix:/x", token="t"))
    gateway.swap(Snapshot(revision=5, tenants=(), keys=()))
    with pytest.raises(ValueError, match="revision 6, not of 5"):
        gateway.swap(Snapshot(revision=7, tenants=(), keys=(), since=6))
    assert gateway.revision == 5


def test_the_months_pictures_are_counted_once(engine: Any):
    """Each record once, in its month; a tenant whose quota is used up is told of at once."""
    world = World(engine, 0)
    tenant = tenants.create(world.ledger, OPERATOR, "acme", "free", PLANS).id
    gateway = world.gateways[0]
    world.follow(gateway)
    label = months.label(world.now)

    def record(number: int, images: int, at: float) -> UsageRecord:
        return UsageRecord(id=str(number), tenant=tenant, at=at, status=200, images=images)

    first = [record(1, 20, world.now), record(2, 25, world.now), record(3, 9, world.now - 1e7)]
    for _ in range(2):  # handed over twice
        taken = usage.take(world.ledger, first, PLANS)
        assert (taken.month, taken.images) == (label, {tenant: 45})
    assert world.snapshot(after=gateway.revision).revision == gateway.revision
    taken = usage.take(world.ledger, [record(4, 6, world.now)], PLANS)
    assert taken.images == {tenant: 51}
    world.follow(gateway)
    assert (gateway.tenants[tenant].images_used, gateway.tenants[tenant].month) == (51, label)
    assert limits.get(world.ledger, tenant, PLANS).images_used == 51
    revision = gateway.revision
    usage.take(world.ledger, [record(5, 6, world.now)], PLANS)
    assert world.ledger.revision() == revision  # told once
