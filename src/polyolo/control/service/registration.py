"""Registration: from nothing to a tenant with its owner and first key, in one transaction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from polyolo.control import names
from polyolo.control.service import invitations, keys, tenants, users
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.control.service.vault import Vault
from polyolo.errors import InvalidValueError
from polyolo.resources import Registered, User
from polyolo.types import Plan


def register(
    ledger: Ledger,
    vault: Vault,
    plans: Sequence[Plan],
    *,
    email: str,
    password: str,
    organization: str,
    invitation: str | None = None,
) -> Registered:
    """Make tenant, owner, quota, runtime and first key, told in the answer only; or nothing.

    email: normal. password: its hash. invitation: a token to use up. Raises InvalidValueError,
    ConflictError when the address has an account, ForbiddenError for a token that is no good.
    """
    name = tenant_name(organization)
    with ledger.changing() as transaction:
        if invitation is not None:
            invitations.use(transaction, invitation, to_register=True)
        owner, tenant = found(transaction, vault, plans, name, email=email, password=password)
        who = users.principal(owner.id, tenant, owner.role)
        key = keys.issue(transaction, who, tenant, "first", names.SCOPES, None)
    return Registered(tenant=tenants.get(ledger, tenant), user=owner, api_key=key)


def found(
    transaction: Transaction,
    vault: Vault,
    plans: Sequence[Plan],
    name: str,
    *,
    email: str,
    password: str,
) -> tuple[User, str]:
    """Make tenant and owner within a larger change; return the owner and the tenant's id.

    name: of the tenant. password: its hash; "": none. Raises ConflictError.
    """
    tenant = names.tenant_id()
    tenants.add(transaction, "registration", tenant, name, plans[0].name)
    return users.add(transaction, vault, tenant, email, users.OWNER, password), tenant


def tenant_name(organization: str) -> str:
    """Return a tenant's name after an organization's, `acme-inc-4k2p` for `Acme Inc.`.

    Every name has such an end: one that came only with a name that is taken would tell that it
    is. Raises InvalidValueError for an organization without letters or digits.
    """
    if not any(character.isalnum() for character in organization):
        raise InvalidValueError("organization: it must have letters or digits")
    plain = unicodedata.normalize("NFKD", organization).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower())[:40].strip("-")
    return f"{slug or 'tenant'}-{names.suffix()}"
