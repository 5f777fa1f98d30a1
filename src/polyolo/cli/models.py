"""`polyolo models`: a tenant's models, and where to get one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import ExistingFile
from rich.console import Group as RichGroup
from rich.console import RenderableType

from polyolo.cli import storage, trials
from polyolo.cli.door import TENANT, AsTenant, as_tenant
from polyolo.cli.output import fields, moment, progress, say, show, show_json, size, table
from polyolo.errors import ConflictError, InvalidValueError, NotFoundError
from polyolo.models import bundled, every_bundled
from polyolo.models.catalogue import CATALOGUE, COCO
from polyolo.models.download import adopt, fetch
from polyolo.resources import Model, ModelSettings

app = App(name="models", help="Push, switch and tune a tenant's models.")


@app.command
def push(
    name: str, file: ExistingFile, /, *, classes: str | None = None, door: AsTenant = TENANT
) -> None:
    """Upload a model file as the next version of a model.

    The first model that a tenant pushes becomes its default. A later version answers once
    `polyolo models use NAME:VERSION` says so, or where a request names it. A push that broke off
    goes on where it stopped when it is made again.

    Args:
        name: What the model is called.
        file: The model, as an ONNX file; or a .pt file, where the operator converts them.
        classes: A file with one class name a line, or the word coco; for a model file that
            carries no names. [default: class_0, class_1, ...]
    """
    client, tenant = as_tenant(door)
    names = () if classes is None else _class_names(classes)
    with client as polyolo:
        total = file.stat().st_size
        with progress(f"pushing {file.name}", total, of_bytes=True) as at:
            version = polyolo.push_model(
                name, file, classes=names, tenant=tenant, progress=lambda sent, _: at(sent)
            )
        if door.json:
            show_json(version)
            return
        model = polyolo.get_model(name, tenant=tenant)
    pushed = f"{name}:{version.version}"
    say(f"{pushed} is there: {version.family}, {len(version.classes)} classes.")
    if model.current != version.version:
        say(f"{name}:{model.current} keeps answering; switch with: polyolo models use {pushed}")
    elif model.default:
        say("It is the default model: it answers where a request names none.")
    else:
        say(f"It answers where a request names it: polyolo detect PICTURE --model {name}")


@app.command(name="list")
def list_(*, door: AsTenant = TENANT) -> None:
    """List the models that the tenant may call; * marks the default."""
    client, tenant = as_tenant(door)
    with client as polyolo:
        models = polyolo.list_models(tenant)
    columns = ("model", "in use#", "versions#", "family", "classes#", "size#", "state")
    show(models, lambda: table(columns, map(_row, models)), json=door.json)


@app.command(name="show")
def show_(name: str, /, *, door: AsTenant = TENANT) -> None:
    """Show a model with its versions and settings.

    Args:
        name: The model.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        model = polyolo.get_model(name, tenant=tenant)
    show(model, lambda: _view(model), json=door.json)


@app.command
def use(
    model: trials.VersionOf,
    /,
    *,
    force: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    door: AsTenant = TENANT,
) -> None:
    """Have a version answer from now on; no request fails meanwhile.

    It is compared with the version in use before, on the model's golden pictures; below the
    model's tolerance it is not put in use.

    Args:
        model: NAME:VERSION, as in city:2.
        force: Put it in use all the same; the audit log says so.
    """
    name, version = trials.name_and_version(model)
    client, tenant = as_tenant(door)
    with client as polyolo, trials.refusal_shown(door.json):
        now = polyolo.use_model(name, version, force=force, tenant=tenant)
    show(now, lambda: f"{now.name}:{now.current} answers now.", json=door.json)


@app.command
def rollback(name: str, /, *, door: AsTenant = TENANT) -> None:
    """Return to the last good version; does nothing when that was done already.

    Args:
        name: The model.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        now = polyolo.rollback_model(name, tenant=tenant)
    left = f" {now.name}:{now.rolled_back_from} was left." if now.rolled_back_from else ""
    show(now, lambda: f"{now.name}:{now.current} answers again.{left}", json=door.json)


@app.command
def settings(
    name: str,
    /,
    *,
    confidence: float | None = None,
    iou: float | None = None,
    classes: str | None = None,
    max_detections: int | None = None,
    input_size: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    door: AsTenant = TENANT,
) -> None:
    """Show or change how a model is served where a request does not say.

    Args:
        name: The model.
        confidence: Least confidence, 0 to 1.
        iou: Overlap above which only the better box is kept, 0 to 1.
        classes: Only these, by id or name, with commas between; '' means all again.
        max_detections: At most this many a picture, 1 to 1000.
        input_size: Side of the input in pixels, 32 to 4096 in steps of 32, for models that leave
            it open; 0: the file's own.
        engine: onnxruntime, openvino, torch, or auto, which measures; '' for the usual one.
        precision: exact, or fast: lower too, where it finds the same boxes in golden pictures.
        tolerance: Least agreement, 0 to 1, of a version that is put in use.
    """
    client, tenant = as_tenant(door)
    wanted = parse_classes(classes)
    with client as polyolo:
        detection = confidence, iou, classes, max_detections
        opening = input_size, engine, precision, tolerance
        if all(value is None for value in (*detection, *opening)):
            now = polyolo.get_settings(name, tenant=tenant)
        else:
            now = polyolo.change_settings(
                name,
                confidence=confidence,
                iou=iou,
                classes=wanted,
                max_detections=max_detections,
                input_size=input_size,
                engine=engine,
                precision=precision,
                tolerance=tolerance,
                tenant=tenant,
            )
    show(now, lambda: fields(_settings(now)), json=door.json)


@app.command
def delete(model: str, /, *, door: AsTenant = TENANT) -> None:
    """Delete a model with all its versions, or one version. There is no way back.

    Args:
        model: The model, or NAME:VERSION for one version that is not in use.
    """
    name, colon, version = model.rpartition(":")
    client, tenant = as_tenant(door)
    with client as polyolo:
        if colon and version.isdecimal():
            polyolo.delete_version(name, int(version), tenant=tenant)
        else:
            polyolo.delete_model(model, tenant=tenant)
    show({"deleted": model}, lambda: f"{model} is deleted.", json=door.json)


app.command(storage.register)
app.command(trials.rollout)
app.command(trials.promote)
app.command(trials.abort)
app.command(trials.compare)
app.command(trials.golden)


@app.command
def pull(
    name: str,
    /,
    *,
    from_: Annotated[ExistingFile | None, Parameter(name="--from")] = None,
    output: Path | None = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Fetch a model file that others publish, or one that ships with polyolo, to push it.

    A download that breaks off goes on with the next try; the file gets its name only once size
    and sha256 are those of the release. Its class names are written beside it.

    Args:
        name: yolox-nano (80 everyday classes, Apache-2.0), pcb:1 or pcb:2.
        from_: The release's file, fetched by other means where there is no network.
        output: File to write. [default: the release's file name, in the current directory]
        json: Print JSON.
    """
    classes: Path | None = None
    ours = {f"{known}:{version}": (known, version) for known, version in every_bundled()}
    if name in CATALOGUE:
        model = CATALOGUE[name]
        target = output or Path(model.file_name)
        if from_ is not None:
            adopt(model, from_, target)
        else:
            with progress(f"pulling {name}", model.size, of_bytes=True) as at:
                fetch(model, target, lambda here, _: at(here))
        classes = target.with_suffix(".classes.txt")
        classes.write_text("".join(f"{label}\n" for label in model.classes))
    elif name in ours and from_ is None:
        target = _copy(bundled(*ours[name]), output)
    else:
        raise NotFoundError(f"no model {name} to pull; there are: {', '.join((*CATALOGUE, *ours))}")
    if json:
        show_json({"name": name, "file": str(target), "classes": classes and str(classes)})
        return
    option = f" --classes {classes}" if classes else ""
    say(f"{target} is there. Push it with: polyolo models push NAME {target}{option}")


def parse_classes(text: str | None) -> list[int | str] | None:
    """Return the ids and names of a comma list; None for None."""
    if text is None:
        return None
    parts = (part.strip() for part in text.split(","))
    return [int(part) if part.isdecimal() else part for part in parts if part]


def _copy(source: Path, output: Path | None) -> Path:
    target = output or Path(source.name)
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise ConflictError(f"{target} exists and is another file; choose a name with --output")
    shutil.copyfile(source, target)
    return target


def _class_names(source: str) -> tuple[str, ...]:
    path = Path(source)
    if source == "coco" and not path.exists():
        return COCO
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not names:
        raise InvalidValueError(f"{source} holds no class name; write one a line")
    return names


def _row(model: Model) -> tuple[object, ...]:
    now = next((v for v in model.versions if v.version == model.current), None)
    return (
        f"{model.name} *" if model.default else model.name,
        model.current,
        len(model.versions),
        now and now.family,
        now and len(now.classes),
        now and size(now.size),
        f"{model.state} {model.reason}".strip(),
    )


def _settings(settings: ModelSettings) -> list[tuple[str, object]]:
    classes, tolerance = settings.classes, settings.tolerance
    return [
        ("confidence", settings.confidence),
        ("iou", settings.iou),
        ("classes", "all" if classes is None else ", ".join(map(str, classes))),
        ("max detections", settings.max_detections),
        ("input size", settings.input_size or "the file's own"),
        ("engine", settings.engine or "the usual one"),
        ("precision", settings.precision),
        ("tolerance", "the platform's" if tolerance is None else tolerance),
    ]


def _view(model: Model) -> RenderableType:
    pairs: list[tuple[str, object]] = [
        ("model", model.name),
        ("in use", f"{model.name}:{model.current} {model.state} {model.reason}".rstrip()),
        ("default", "yes" if model.default else "no"),
        *_settings(model.settings),
        *trials.about_rollout(model),
    ]
    columns = ("version#", "family", "input", "classes#", "size#", "licence", "by", "when")
    rows = (
        (
            one.version,
            one.family,
            "x".join(str(edge) if edge else "N" for edge in one.input),
            len(one.classes),
            size(one.size),
            one.licence,
            one.created_by,
            moment(one.created_at),
            one.digest[:12],
            trials.about_version(model, one),
        )
        for one in model.versions
    )
    return RichGroup(fields(pairs), table((*columns, "sha256", ""), rows))
