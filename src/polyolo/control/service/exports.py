"""The rows of one tenant as its owner may have them: sealed values opened, digests left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.secrets import Place
from polyolo.control.service import golden, holdings
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault

LEFT_OUT = frozenset(
    {
        "data_keys",  # wrapped, of use to nobody
        "erasures",  # there is nobody left to export it to
        "events",  # see service.audit
        "replays",  # answers of the last day, which only their callers can open
        "runtimes",  # what was observed, and where
        "touched",  # what gateways were told last
    }
)
"""Tables that are not exported as they are."""
SECRET = frozenset({"digest", "email_digest", "password", "previous_digest", "storage"})
"""Columns that prove something to us, and are nothing to their owner. A model file's digest is
its name, and told."""
FILES = frozenset({"artifacts", "golden", "versions"})
"""Tables whose column `digest` names a file."""
_SEALED = {("users", "email"), ("identities", "subject"), ("golden", "expected")}
_PAGE = 1000


def tables() -> list[sa.Table]:
    """Return the tables that hold something of tenants which they may have."""
    return [
        table
        for table in db.metadata.sorted_tables
        if table.name not in LEFT_OUT and holdings.of(table, "") is not None
    ]


def rows(ledger: Ledger, vault: Vault, table: sa.Table, tenant: str) -> Iterator[dict[str, Any]]:
    """Yield a tenant's rows of one table, page by page: who stops reading leaves nothing open."""
    own = holdings.of(table, tenant)
    assert own is not None
    # In order of time where there is an index for it, else by the primary key.
    order = [table.c.at, table.c.id] if "at" in table.c else list(table.primary_key)
    kept = [column for column in table.c if column.name not in SECRET or table.name in FILES]
    query = sa.select(table).where(own).order_by(*order).limit(_PAGE)
    after: tuple[Any, ...] | None = None
    while True:
        page = query if after is None else query.where(sa.tuple_(*order) > after)
        with ledger.reading() as connection:
            found = connection.execute(page).mappings().all()
            told = [
                {c.name: _told(connection, vault, table, c.name, row, tenant) for c in kept}
                for row in found
            ]
        yield from told
        if len(found) < _PAGE:
            return
        after = tuple(found[-1][column.name] for column in order)


def _told(
    connection: sa.Connection, vault: Vault, table: sa.Table, column: str, row: Any, tenant: str
) -> Any:
    if (table.name, column) not in _SEALED or row[column] is None:
        return row[column]
    if table is db.golden:
        place = golden.place(tenant, row["model"], row["number"])
    else:
        place = Place(table=table.name, column=column, row=row["id"], tenant=tenant)
    return vault.unseal(connection, row[column], place)
