"""Whatever is done to the audit log behind the platform's back, verification names it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polyolo.control import audit as mathematics
from polyolo.control import db
from polyolo.control.audit import GENESIS, Entry, Mark
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.secrets import LocalMaster
from polyolo.control.service import audit, verify
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError, PolyoloError
from tests.integration.control_plane import database_url

EACH = 25  # times that each manipulation is tried; twelve of them: 300
TENANTS = ("t_aaaaaaaaaa", "t_bbbbbbbbbb", None)
TEXTS = ("actor", "action", "resource", "detail", "source")


@pytest.fixture(scope="module")
def opened_logs() -> Iterator[dict[str, Ledger]]:
    logs: dict[str, Ledger] = {}
    yield logs
    for ledger in logs.values():
        ledger._engine.dispose()


@pytest.fixture
def ledger(
    database: str, opened_logs: dict[str, Ledger], tmp_path_factory: pytest.TempPathFactory
) -> Ledger:
    """A log of 60 entries; tests leave it as it was."""
    if database not in opened_logs:
        opened_logs[database] = written(tmp_path_factory.mktemp("log"))
    return opened_logs[database]


def written(home: Path) -> Ledger:
    """Return a log with 60 entries in transactions of one to four."""
    engine = db.open_engine(database_url(home) or f"sqlite:///{home / 'x.db'}")
    migrate(engine)
    now = iter(range(1_000_000, 2_000_000))
    ledger = Ledger(
        engine,
        audit.opened(engine, Vault(LocalMaster(bytes(32)))),
        clock=lambda: next(now) + 0.123456789,
    )
    chance = random.Random(1)
    count = 0
    while count < 60:
        with ledger.changing() as transaction:
            for _ in range(min(chance.randint(1, 4), 60 - count)):
                count += 1
                transaction.note(
                    "key:ä",
                    f"action.{count}",
                    tenant=chance.choice(TENANTS),
                    resource=f"models/{count}",
                    detail="detail\nof it",
                )
    return ledger


Rows = list[dict[str, Any]]


def rows(connection: sa.Connection) -> Rows:
    query = sa.select(db.events).order_by(db.events.c.seq)
    return [dict(row) for row in connection.execute(query).mappings()]


def put(connection: sa.Connection, fresh: Rows) -> None:
    connection.execute(db.events.delete())
    if fresh:
        connection.execute(db.events.insert(), fresh)


def digest_of(entry: Entry, row: dict[str, Any]) -> str:
    words = row["redacted"] or mathematics.commitment(entry, row["salt"])
    return mathematics.digest(entry, row["number"], words)


def relinked(fresh: Rows) -> Rows:
    """Return rows with digests and chains that fit again: what a careful forger does."""
    whole, ends = GENESIS, {}
    for row in fresh:
        number, chain = ends.get(row["tenant"], (0, GENESIS))
        row["number"] = number + 1
        entry = Entry(**{field: row[field] for field in Entry.__slots__})
        row["digest"] = digest_of(entry, row)
        row["whole"] = whole = mathematics.link(whole, row["digest"])
        row["chain"] = mathematics.link(chain, row["digest"])
        ends[row["tenant"]] = (row["number"], row["chain"])
    return fresh


def ending(connection: sa.Connection, fresh: Rows) -> None:
    """Have the marks say what the rows say; only their signatures cannot be made."""
    for chain in ("*", *{row["tenant"] or "" for row in fresh}):
        own = [row for row in fresh if chain in ("*", row["tenant"] or "")]
        last = own[-1]
        values = {"number": last["number"], "hash": last["chain"]}
        if chain == "*":
            values = {"number": last["seq"], "hash": last["whole"]}
        connection.execute(
            db.audit_marks.update().where(db.audit_marks.c.chain == chain).values(**values)
        )


def edit(connection: sa.Connection, chance: random.Random) -> set[int]:
    """One field of one entry."""
    fresh = rows(connection)
    row = chance.choice(fresh)
    field = chance.choice((*TEXTS, "at", "status", "tenant", "kind"))
    changed = {"at": row["at"] + 1e-6, "status": row["status"] + 1, "tenant": "t_cccccccccc"}
    row[field] = changed.get(field, "other")
    put(connection, fresh)
    return {row["seq"]}


def edit_with_digest(connection: sa.Connection, chance: random.Random) -> set[int]:
    """One field, with a digest that fits."""
    fresh = rows(connection)
    row = chance.choice(fresh)
    row[chance.choice(TEXTS)] = "other"
    entry = Entry(**{field: row[field] for field in Entry.__slots__})
    row["digest"] = digest_of(entry, row)
    put(connection, fresh)
    return {row["seq"]}


def rewrite(connection: sa.Connection, chance: random.Random) -> set[int]:
    """One field, and everything after it made to fit, the marks too."""
    fresh = rows(connection)
    row = chance.choice(fresh)
    row[chance.choice(TEXTS)] = "other"
    put(connection, relinked(fresh))
    ending(connection, fresh)
    signed = next(r["seq"] for r in fresh if r["seq"] >= row["seq"] and r["signature"])
    return set(range(row["seq"], signed + 1))


def take_words(connection: sa.Connection, chance: random.Random) -> set[int]:
    """What one entry says is gone, as after an erasure; sometimes with a mark that allows it."""
    fresh = rows(connection)
    row = chance.choice([one for one in fresh if one["tenant"]])
    entry = Entry(**{field: row[field] for field in Entry.__slots__})
    row["redacted"] = mathematics.commitment(entry, row["salt"])
    row |= {"salt": None, "resource": "", "detail": "", "source": ""}
    put(connection, fresh)
    if chance.random() < 0.5:
        real = connection.execute(
            sa.select(db.audit_marks).where(db.audit_marks.c.chain == row["tenant"])
        ).mappings()
        forged = {**real.one(), "kind": "erased"}
        connection.execute(db.audit_marks.insert(), [forged])
    return {row["seq"]}


def delete(connection: sa.Connection, chance: random.Random) -> set[int]:
    """One entry gone."""
    seq = chance.randint(1, 60)
    connection.execute(db.events.delete().where(db.events.c.seq == seq))
    return {seq}


def delete_and_close(connection: sa.Connection, chance: random.Random) -> set[int]:
    """One entry gone, the later ones moved up, everything made to fit."""
    fresh = rows(connection)
    seq = chance.randint(1, 59)
    del fresh[seq - 1]
    for number, row in enumerate(fresh, 1):
        row["seq"] = number
    put(connection, relinked(fresh))
    ending(connection, fresh)
    signed = [r["seq"] for r in fresh if r["seq"] >= seq and r["signature"]]
    return set(range(seq, (signed[0] if signed else 60) + 1))


def swap(connection: sa.Connection, chance: random.Random) -> set[int]:
    """Two entries in each other's places."""
    fresh = rows(connection)
    one, other = chance.sample(fresh, 2)
    one["seq"], other["seq"] = other["seq"], one["seq"]
    put(connection, fresh)
    return {one["seq"], other["seq"]}


def cut(connection: sa.Connection, chance: random.Random) -> set[int]:
    """The end gone."""
    first = chance.randint(1, 60)
    connection.execute(db.events.delete().where(db.events.c.seq >= first))
    return {first}


def cut_with_marks(connection: sa.Connection, chance: random.Random) -> set[int]:
    """The end gone, and the marks say so."""
    first = chance.randint(10, 60)
    connection.execute(db.events.delete().where(db.events.c.seq >= first))
    ending(connection, rows(connection))
    return set(range(first - 1, 61))


def cut_beginning(connection: sa.Connection, chance: random.Random) -> set[int]:
    """The beginning gone, as if it had been pruned."""
    last = chance.randint(1, 59)
    connection.execute(db.events.delete().where(db.events.c.seq <= last))
    return {last}


def replay(connection: sa.Connection, chance: random.Random) -> set[int]:
    """An entry once more at the end, signature and all."""
    again = chance.choice(rows(connection)) | {"seq": 61}
    connection.execute(db.events.insert(), [again])
    return {61}


def forge_mark(connection: sa.Connection, chance: random.Random) -> set[int]:
    """A mark gone, or with another number or hash."""
    marks = connection.execute(sa.select(db.audit_marks)).all()
    mark = chance.choice(marks)
    table = db.audit_marks
    where = (table.c.chain == mark.chain, table.c.kind == mark.kind)
    changed = chance.choice([{"number": mark.number - 1}, {"hash": "0" * 64}, None])
    if changed is None:
        connection.execute(table.delete().where(*where))
    else:
        connection.execute(table.update().where(*where).values(**changed))
    own = [r["seq"] for r in rows(connection) if mark.chain in ("*", r["tenant"] or "")]
    return {own[-1], mark.number, mark.number - 1}


MANIPULATIONS = (
    *(edit, edit_with_digest, rewrite, take_words, delete, delete_and_close, swap),
    *(cut, cut_with_marks, cut_beginning, replay, forge_mark),
)


@pytest.mark.parametrize("manipulate", MANIPULATIONS, ids=lambda one: one.__name__)
def test_every_manipulation_is_named(
    ledger: Ledger, manipulate: Callable[[sa.Connection, random.Random], set[int]]
):
    """What was done is named by its place, whatever it was, for 300 of them."""
    for seed in range(EACH):
        with ledger._engine.connect() as connection, connection.begin() as transaction:
            touched = manipulate(connection, random.Random(seed))
            verdict = verify.everything(connection, ledger.signer, None, ())
            transaction.rollback()
        named = {problem.seq for problem in verdict.problems}
        assert named & touched, (manipulate.__name__, seed, touched, verdict.problems)


def test_what_nobody_touched_verifies(ledger: Ledger):
    """The whole log, and each tenant's own; a tenant learns nothing of others."""
    assert audit.verified(ledger).problems == ()
    own = audit.verified(ledger, "t_aaaaaaaaaa")
    assert own.problems == ()
    mine = list(audit.entries(ledger, "t_aaaaaaaaaa"))
    assert own.entries == len(mine) < 60
    assert [entry.seq for entry in mine] == list(range(1, len(mine) + 1))
    assert {(entry.tenant, entry.whole, entry.signature) for entry in mine} == {
        ("t_aaaaaaaaaa", "", None)
    }


def test_a_tenant_sees_what_was_done_to_its_own(ledger: Ledger):
    """Edited, gone, cut off: told by the place among its own entries; others' are not its."""
    table = db.events
    own = table.c.tenant == "t_aaaaaaaaaa"
    own_count = audit.verified(ledger, "t_aaaaaaaaaa").entries
    for where, change, named in (
        (table.c.number == 2, {"actor": "other"}, {2}),
        (table.c.number == 2, None, {2}),
        (table.c.number >= own_count - 1, None, {own_count - 1, own_count}),
    ):
        with ledger._engine.connect() as connection, connection.begin() as transaction:
            what = table.delete() if change is None else table.update().values(**change)
            connection.execute(what.where(own, where))
            for tenant, expected in (("t_aaaaaaaaaa", named), ("t_bbbbbbbbbb", set())):
                verdict = verify.everything(connection, ledger.signer, tenant, ())
                assert {problem.seq for problem in verdict.problems} == expected
            transaction.rollback()


def test_an_older_copy_of_the_whole_database_is_found_out(ledger: Ledger):
    """Every signature holds; only what was witnessed outside tells."""
    head = audit.head(ledger)
    assert head is not None
    assert head.number == 60
    assert audit.verified(ledger, witnessed=[head]).problems == ()
    later = Mark(chain="*", kind="head", number=61, hash=head.hash)
    assert {p.seq for p in audit.verified(ledger, witnessed=[later]).problems} == {61}
    other = Mark(chain="*", kind="head", number=59, hash=head.hash)
    assert {p.seq for p in audit.verified(ledger, witnessed=[other]).problems} == {59}


def test_another_platform_s_signature_is_none(ledger: Ledger):
    """A log signed by somebody else's key is not ours."""
    stranger = mathematics.Signer(mathematics.new_private_key())
    with ledger.reading() as connection:
        assert verify.everything(connection, stranger, None, ()).problems


def test_nothing_is_added_to_a_forged_end(ledger: Ledger):
    """The next change is refused, so that it does not sign what a forger left."""
    table = db.audit_marks
    whole = table.c.chain == "*"
    kept = audit.head(ledger)
    assert kept is not None
    with db.writing(ledger._engine) as connection:
        connection.execute(table.update().where(whole).values(number=59))
    with (
        pytest.raises(PolyoloError, match="not as it was signed"),
        ledger.changing() as transaction,
    ):
        transaction.note("operator", "tenant.create", tenant=None, resource="x")
    with db.writing(ledger._engine) as connection:
        connection.execute(table.update().where(whole).values(number=60))
    assert audit.verified(ledger).problems == ()


def test_pruning_keeps_the_rest_verifiable(database: str, tmp_path: Path):
    """Older entries go, the rest verifies, later tampering is named; evidence is not pruned."""
    ledger = written(tmp_path)
    middle = list(audit.entries(ledger))[30]
    # Entries of one transaction have one time: the earliest of it stays.
    first = min(entry.seq for entry in audit.entries(ledger) if entry.at == middle.at)
    assert audit.prune(ledger, middle.at) == first - 1
    assert audit.verified(ledger).problems == ()
    assert audit.verified(ledger, "t_bbbbbbbbbb").problems == ()
    assert next(audit.entries(ledger)).seq == first
    assert [e.action for e in audit.entries(ledger)][-1] == "audit.prune"
    assert audit.prune(ledger, middle.at) == 0
    with db.writing(ledger._engine) as connection:
        connection.execute(db.events.delete().where(db.events.c.seq == first))
    named = {problem.seq for problem in audit.verified(ledger).problems}
    assert first in named
    with pytest.raises(ConflictError, match="does not verify"):
        audit.prune(ledger, 1e12)
    ledger._engine.dispose()
