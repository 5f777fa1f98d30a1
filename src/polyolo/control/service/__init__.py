"""The only writer of the control plane: one module a noun, functions over a Ledger.

Every change is one transaction: rows, one event, one new revision. Who may call what is decided
before (`polyolo.control.access`); here a tenant is given by its id.
"""
