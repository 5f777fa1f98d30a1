"""`polyolo tenants`: the operator's customers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from rich.console import RenderableType

from polyolo.cli import limits
from polyolo.cli.door import OPERATOR, AsOperator, as_operator
from polyolo.cli.output import complain, fields, moment, say, show, show_json, table
from polyolo.cli.releases import OWN, as_given
from polyolo.cli.storage import storage
from polyolo.errors import InvalidValueError, NotFoundError, NotReadyError
from polyolo.resources import Certificate, Erasure, Tenant

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]

app = App(
    name="tenants", help="Create, suspend, export, delete and erase tenants. For the operator."
)
app.command(limits.change, name="limits")
app.command(limits.plan, name="plan")
app.command(storage)

_ERASED_S = 120.0
"""How long `erase` waits for the certificate: requests in flight are given 30 s, then runtimes end,
and a large database is written anew at some 100 MB a second."""


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
def export(tenant: str, /, *, output: Path | None = None, door: AsOperator = OPERATOR) -> None:
    """Write everything about a tenant into one signed zip archive.

    `polyolo tenants verify` checks it, without the platform.

    Args:
        tenant: Its name or id.
        output: The file to write. [default: TENANT-export.zip]
    """
    target = output or Path(f"{tenant}-export.zip")
    with as_operator(door) as polyolo:
        polyolo.export_tenant(target, tenant=tenant)
    show({"written": str(target)}, lambda: f"{target} holds everything about it.", json=door.json)


@app.command
def erase(
    tenant: str,
    /,
    *,
    yes: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    output: Path | None = None,
    door: AsOperator = OPERATOR,
) -> None:
    """Erase a tenant with everything but what has to be kept, and write a signed certificate.

    There is no way back. Works for one that was deleted before, too, by its id.

    Args:
        tenant: Its name or id.
        yes: Do not ask to write the tenant's name first.
        output: The certificate's file. [default: TENANT-erasure.json]
    """
    target = output or Path(f"{tenant}-erasure.json")
    if not yes and _asked(tenant) != tenant:
        raise InvalidValueError("nothing was erased; write the name as it is, or pass --yes")
    with as_operator(door) as polyolo:
        try:
            name = polyolo.get_tenant(tenant).name
        except NotFoundError:  # deleted before: only its traces are left
            name = tenant
        erasure = polyolo.erase_tenant(tenant, confirm=name)
        deadline = time.monotonic() + _ERASED_S
        while erasure.certificate is None:
            if time.monotonic() > deadline:
                raise NotReadyError(
                    "it is being erased, and that takes longer than usual; ask for its certificate "
                    f"later with: polyolo tenants erase {erasure.tenant} --yes"
                )
            time.sleep(0.2)  # another process is at work
            erasure = polyolo.get_erasure(erasure.id)
    document = msgspec.json.format(msgspec.json.encode(erasure.certificate), indent=2)
    target.write_bytes(document + b"\n")
    found = erasure.certificate
    show(found, lambda: _erased(tenant, erasure, found, target), json=door.json)


@app.command
def verify(
    file: Path,
    /,
    *,
    public_key: str | None = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Check an export or a certificate of erasure, without the platform.

    Args:
        file: What `polyolo tenants export` or `erase` wrote.
        public_key: The key that must have signed it, as `polyolo audit --verify` shows it.
        json: Print JSON.
    """
    from polyolo.control.proof import check

    proof = check(file)
    problems = list(proof.problems)
    if public_key is not None and public_key != proof.public_key:
        problems.insert(0, f"it is signed with another key, {proof.public_key}")
    if json:
        show_json({"kind": proof.kind, "tenant": proof.tenant, "problems": problems})
    elif problems:
        show(problems, lambda: table(("what is wrong",), ((one,) for one in problems)), json=False)
    else:
        log = f", with {proof.entries} entries of its audit log" if proof.entries else ""
        say(f"An {proof.kind} of the tenant {proof.tenant}{log}, as {proof.platform} signed it")
        say(
            f"with {proof.public_key}" + ("" if public_key else "; compare it with the platform's.")
        )
    return complain(f"{file} was changed since it was signed") if problems else 0


def _asked(tenant: str) -> str:
    if not sys.stdin.isatty():
        return ""
    sys.stderr.write(f"There is no way back. Write the name to erase {tenant}: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _erased(
    tenant: str, erasure: Erasure, certificate: Certificate, target: Path
) -> RenderableType:
    pairs: list[tuple[str, object]] = [(f"{tenant} is erased", certificate.finished_at)]
    pairs += [(f"removed: {kind}", count) for kind, count in certificate.removed.items()]
    pairs += [("removed: model files", len(certificate.files))]
    pairs += [(f"kept until {kept.until}", kept.what) for kept in certificate.kept]
    pairs += [("certificate", target), ("again at", f"/api/v1/erasures/{erasure.id}")]
    return fields(pairs)


@app.command
def release(
    tenant: str, to: str | None = None, /, *, follow: _Flag = False, door: AsOperator = OPERATOR
) -> None:
    """Show the release that a tenant's runtime is pinned to, or pin it to another.

    The runtime is started again; requests wait for that.

    Args:
        tenant: Its name or id.
        to: A release that the platform was started with (--release), or own.
        follow: Have it follow the platform again.
    """
    with as_operator(door) as polyolo:
        if to is None and not follow:
            found = polyolo.get_tenant(tenant)
        else:
            found = polyolo.set_release(tenant, None if to is None else as_given(to))
    said = "follows the platform" if found.release is None else f"is on {found.release or OWN}"
    show(found, lambda: f"{found.name} {said}.", json=door.json)


@app.command
def render(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Print every Kubernetes object of a tenant (JSON, as `kubectl apply -f -` takes it).

    Its keys are hidden: applied by hand, the Secret would be without them.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        show_json(polyolo.render_tenant(tenant))


@app.command
def warm(tenant: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Wake a tenant's runtime, so that its next request does not wait.

    Args:
        tenant: Its name or id.
    """
    with as_operator(door) as polyolo:
        status = polyolo.warm(tenant)
    show(status, lambda: " ".join(filter(None, (status.phase, status.reason))), json=door.json)


@app.command
def schedule(
    tenant: str, /, *windows: str, clear: _Flag = False, door: AsOperator = OPERATOR
) -> None:
    """Show or set the hours of the week in which a tenant's runtime is kept awake.

    Args:
        tenant: Its name or id.
        windows: Hours in UTC, as `mon-fri 07:30-18:00`; they take the place of those before.
        clear: Keep it awake for its requests only.
    """
    with as_operator(door) as polyolo:
        if windows or clear:
            found = polyolo.set_schedule(tenant, windows)
        else:
            found = polyolo.get_schedule(tenant)
    show(found, lambda: "\n".join(found.windows) or "awake for requests only", json=door.json)


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
