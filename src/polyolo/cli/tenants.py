"""`polyolo tenants`: the operator's customers."""

from __future__ import annotations

from cyclopts import App
from rich.console import RenderableType

from polyolo.cli.door import OPERATOR, AsOperator, as_operator
from polyolo.cli.output import fields, moment, say, show, show_json, table
from polyolo.resources import Tenant

app = App(name="tenants", help="Create, suspend and delete tenants. For the operator.")


@app.command
def create(name: str, /, *, plan: str | None = None, door: AsOperator = OPERATOR) -> None:
    """Create a tenant and print its first API key, this once.

    It serves the platform's standard model at once.

    Args:
        name: What the tenant is called: letters, digits, dots, dashes, underscores.
        plan: What it may use. [default: the platform's]
    """
    with as_operator(door) as polyolo:
        tenant = polyolo.create_tenant(name, plan=plan)
    if door.json:
        show_json(tenant)
        return
    say(f"Tenant {tenant.name} ({tenant.id}) answers with the model {tenant.default_model!r}.")
    if tenant.api_key is not None:
        say("Its first API key, shown only now:\n")
        say(f"  export POLYOLO_API_KEY={tenant.api_key.key}\n")
        say("With it:  polyolo detect PICTURE")


@app.command(name="list")
def list_(*, door: AsOperator = OPERATOR) -> None:
    """List all tenants."""
    with as_operator(door) as polyolo:
        tenants = polyolo.list_tenants()
    columns = ("name", "id", "plan", "state", "runtime", "default model", "created")
    rows = (
        (t.name, t.id, t.plan, t.state, _phase(t), t.default_model, moment(t.created_at))
        for t in tenants
    )
    show(tenants, lambda: table(columns, rows), json=door.json)


@app.command(name="show")
def show_(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Show a tenant and how its runtime fares.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        found = polyolo.get_tenant(tenant)
    show(found, lambda: _view(found), json=door.json)


@app.command
def suspend(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Close the door to a tenant; it keeps its data.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        found = polyolo.suspend_tenant(tenant)
    show(
        found, lambda: f"{found.name} is suspended: its requests are answered 403.", json=door.json
    )


@app.command
def resume(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Open the door to a suspended tenant again.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        found = polyolo.resume_tenant(tenant)
    show(found, lambda: f"{found.name} is active again.", json=door.json)


@app.command
def delete(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Delete a tenant with its keys and models. There is no way back.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        polyolo.delete_tenant(tenant)
    show({"deleted": tenant}, lambda: f"{tenant} is deleted.", json=door.json)


@app.command
def render(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Print every Kubernetes object of a tenant (JSON, as `kubectl apply -f -` takes it).

    Its keys are hidden: applied by hand, the Secret would be without them.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        show_json(polyolo.render_tenant(tenant))


def _phase(tenant: Tenant) -> str:
    return "" if tenant.runtime is None else tenant.runtime.phase


def _view(tenant: Tenant) -> RenderableType:
    runtime = tenant.runtime
    pairs = [
        ("name", tenant.name),
        ("id", tenant.id),
        ("plan", tenant.plan),
        ("state", tenant.state),
        ("created", moment(tenant.created_at)),
        ("default model", tenant.default_model),
        ("runtime", " ".join(filter(None, (_phase(tenant), runtime.reason if runtime else "")))),
    ]
    for model in runtime.models if runtime else ():
        fares = " ".join(filter(None, (model.state, model.engine, model.reason)))
        pairs.append((f"{model.name}:{model.version}", fares))
    return fields(pairs)
