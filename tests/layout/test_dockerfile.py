"""What can be held about the image without an engine; each rule is seen to fail when broken."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("LICENSE", "README.md", "pyproject.toml", "src")
HOST = re.compile(
    r"://|\w:\d+/|\b(?:[a-z0-9-]+\.)+(?:com|org|io|net|dev)/|localhost|^# *syntax", re.MULTILINE
)

IMAGES = ("serving", "gateway", "control")

Stages = dict[str, list[tuple[str, str]]]


def stages(text: str) -> Stages:
    """Return each stage's instructions, name and arguments; before the first FROM: stage ''."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: Stages = {"": []}
    stage = ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.split()[-1]
            found[stage] = []
        if name:
            found[stage].append((name, rest.strip()))
    return found


def violations(root: Path) -> list[str]:
    """Return what breaks the image's rules below `root`, a sentence each."""
    text = (root / "deploy/Dockerfile").read_text()
    found = stages(text)
    if missing := [f"there is no stage `{name}`" for name in IMAGES if name not in found]:
        return missing
    return [
        *context_violations(root, found),
        *supply_violations(text, found),
        *(one for name in IMAGES for one in image_violations(name, found[name])),
        *runtime_violations(found["serving"]),
    ]


def context_violations(root: Path, found: Stages) -> Iterator[str]:
    """Yield what is copied but missing, and what reaches the build without being copied."""
    rules = (root / ".dockerignore").read_text().split()
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for stage, instructions in found.items():
        for name, rest in instructions:
            if name != "COPY" or "--from=" in rest:
                continue
            if stage in IMAGES:
                yield f"the image takes {rest} straight from the build context"
            for source in rest.split()[:-1]:
                copied.add(source.split("/")[0])
                if not list(root.glob(source)):
                    yield f"{source} is copied but does not exist"
    for lock in re.findall(r"requirements/[\w-]+\.txt", json.dumps(found)):
        if not (root / lock).is_file():
            yield f"{lock} is named but does not exist"
    if "*" not in rules:
        yield ".dockerignore does not leave everything out first"
    if copied != let_through:
        yield f".dockerignore lets {let_through} through, the Dockerfile copies {copied}"


def supply_violations(text: str, found: Stages) -> Iterator[str]:
    """Yield where something unpinned, or from a host of ours, comes in."""
    if host := HOST.search(text):
        yield f"a host is named: {host[0]}"
    for stage, instructions in found.items():
        for name, rest in instructions:
            if name == "FROM" and rest.split()[0] not in {"${BASE}", *found}:
                yield f"stage {stage} has a base of its own"
            for command in rest.split("&&"):
                offline = "--require-hashes" in command or "--no-index" in command
                if "pip install" in command and not offline:
                    yield f"stage {stage} installs without hashes:{command}"


def image_violations(image: str, stage: list[tuple[str, str]]) -> Iterator[str]:
    """Yield what a container of any of the images could do, or could not, against the rules."""
    last = dict(stage)
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield f"the user of {image} is not a number above 0"
    if last.get("STOPSIGNAL") != "SIGTERM":
        yield f"{image} is not stopped by SIGTERM"
    if not last.get("ENTRYPOINT", "").startswith("["):
        yield f"the entry point of {image} is not in exec form: a shell would get the signal"
    if image != "gateway" and "ORT_DISABLE_TELEMETRY=1" not in last.get("ENV", ""):
        yield f"ONNX Runtime's telemetry is on in {image}"


def runtime_violations(serving: list[tuple[str, str]]) -> Iterator[str]:
    """Yield what a runtime's image lacks that engines without probes of their own need."""
    last = dict(serving)
    if not last.get("CMD", "").startswith("["):
        yield "CMD is not in exec form: a shell would get the signal"
    check = last.get("HEALTHCHECK", "")
    if not re.search(r'CMD \["python3"', check) or re.search("curl|wget", check):
        yield "there is no health check by Python alone"
    elif f'"{port_of(check)}"' not in last.get("CMD", ""):
        yield "the health check asks another port than the one served"


def port_of(check: str) -> str:
    """Return the port that a health check asks."""
    found = re.search(r"'127\.0\.0\.1', (\d+)", check)
    return found[1] if found else "no port"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of all that the rules look at, to break."""
    for name in ("deploy", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    for name in COPIED:
        (tmp_path / name).touch()
    return tmp_path


def test_the_image_keeps_its_rules():
    """The Dockerfile and the build context are as the rules want them."""
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("deploy/Dockerfile", "AS serving", "AS server", "no stage"),
        ("deploy/Dockerfile", "AS control\n", "AS steering\n", "no stage"),
        (
            "deploy/Dockerfile",
            "-r /build/requirements/gateway.txt",
            "-r /build/requirements/door.txt",
            "door.txt is named",
        ),
        (
            "deploy/Dockerfile",
            '["python3", "-m", "polyolo", "control"]',
            "python3 -m x",
            "exec form",
        ),
        ("deploy/Dockerfile", "requirements/build.txt", "requirements/gone.txt", "does not exist"),
        ("deploy/Dockerfile", "/serving.txt;", "/requirements/gone.txt;", "is named but"),
        ("deploy/Dockerfile", "USER 65532:65532", "COPY src /src\nUSER 1:1", "build context"),
        ("deploy/Dockerfile", "USER 65532:65532", "USER root", "not a number"),
        ("deploy/Dockerfile", "USER 65532:65532", "USER 0:0", "not a number"),
        ("deploy/Dockerfile", "USER 65532:65532", "", "of gateway is not a number"),
        ("deploy/Dockerfile", "BASE=", "BASE=registry.example.com/", "a host"),
        ("deploy/Dockerfile", "FROM ${BASE} AS packages", "FROM x AS packages", "its own"),
        ("deploy/Dockerfile", "--require-hashes", "", "without hashes"),
        ("deploy/Dockerfile", "STOPSIGNAL SIGTERM", "", "SIGTERM"),
        ("deploy/Dockerfile", '["python3", "-m", "polyolo.serving"]', "python3 -m x", "exec form"),
        ("deploy/Dockerfile", '["python3", "-ISc"', '["curl", "-f"', "health check"),
        ("deploy/Dockerfile", "'127.0.0.1', 8080", "'127.0.0.1', 8000", "another port"),
        ("deploy/Dockerfile", "ORT_DISABLE_TELEMETRY=1", "ORT_DISABLE_TELEMETRY=0", "telemetry"),
        (".dockerignore", "*\n!LICENSE", "!LICENSE", "everything out"),
        (".dockerignore", "!src\n", "!src\n!training\n", "lets"),
    ],
)
def test_each_rule_fails_on_a_planted_violation(copy, file, old, new, sentence):
    """A rule that cannot fail holds nothing."""
    path = copy / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert any(sentence in one for one in violations(copy)), violations(copy)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_tells_a_live_process_from_a_stuck_or_absent_one(status, healthy):
    """The very command of the Dockerfile exits with 0 for a 200 of /livez only."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    serving = stages((ROOT / "deploy/Dockerfile").read_text())["serving"]
    check = dict(serving)["HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = str(server.server_port)
        if status is None:
            server.server_close()
        else:
            Thread(target=server.handle_request, daemon=True).start()
        result = subprocess.run(
            [sys.executable, *(part.replace(port_of(check), port) for part in command[1:])],
            capture_output=True,
            timeout=30,
        )
    assert (result.returncode == 0) is healthy
    assert asked == ([] if status is None else ["/livez"])
