"""`polyolo models pull`: only the published file ever gets the published name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from polyolo import models
from polyolo.cli import main
from polyolo.errors import ConflictError, NotFoundError, NotReadyError, PolyoloError
from polyolo.models.catalogue import CATALOGUE, COCO, Published
from polyolo.models.download import adopt, fetch

CONTENT = bytes(range(256)) * 2000


class Release:
    """A place of release that can break off, redirect, ignore ranges, and lie."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.break_off_after: int | None = None
        self.takes_ranges = True
        self.status: int | None = None
        self.asked: list[str | None] = []
        self.model = Published(name="m", url="", size=0, sha256="", classes=(), licence="")


@pytest.fixture
def release() -> Iterator[Release]:
    """Give a release of CONTENT behind a redirect, as GitHub has it."""
    state = Release()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/m.onnx":
                self.send_response(302)
                self.send_header("location", "/asset")
                self.end_headers()
                return
            wanted = self.headers.get("range")
            state.asked.append(wanted)
            start = 0
            if wanted and state.takes_ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            self.send_response(state.status or (206 if start else 200))
            body = state.content[start:]
            self.send_header("content-length", str(len(body)))
            if start:
                total = len(state.content)
                self.send_header("content-range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            self.wfile.write(body[: state.break_off_after])

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.model = Published(
        name="m",
        url=f"http://127.0.0.1:{server.server_address[1]}/m.onnx",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        classes=("a", "b c"),
        licence="",
    )
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "m.onnx"


def part(target: Path) -> Path:
    return target.with_name("m.onnx.part")


def test_the_published_file_is_fetched_with_progress(release, target):
    """The file is there in the end, nothing else is, and the progress reaches the total."""
    told = []
    fetch(release.model, target, lambda here, total: told.append((here, total)))
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_download_that_broke_off_goes_on_where_it_was(release, target):
    """What arrived is kept under another name, said, and not fetched again."""
    release.break_off_after = 200_000
    with pytest.raises(NotReadyError, match="broke off at 200,000 of 512,000 bytes"):
        fetch(release.model, target)
    assert not target.exists()
    assert part(target).stat().st_size == 200_000
    release.break_off_after = None
    fetch(release.model, target)
    assert target.read_bytes() == CONTENT
    assert release.asked == [None, "bytes=200000-"]


def test_a_server_without_ranges_is_read_from_the_start(release, target):
    """An answer with the whole file replaces what was there, instead of being appended."""
    part(target).write_bytes(CONTENT[:1000])
    release.takes_ranges = False
    fetch(release.model, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1])
def test_rubbish_left_by_an_earlier_try_does_not_last(release, target, size):
    """A part that cannot be the file is refused or replaced, and the next try succeeds."""
    part(target).write_bytes(b"\0" * size)
    if size == len(CONTENT):
        with pytest.raises(PolyoloError, match="other contents"):
            fetch(release.model, target)
        assert not part(target).exists()
    fetch(release.model, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\0" * len(CONTENT), "has other contents"),
        (CONTENT[:-1], "has 511,999 bytes"),
        (CONTENT * 3, "bytes, instead of 512,000 bytes"),
    ],
)
def test_another_file_never_gets_the_name(release, target, content, found):
    """Other contents, fewer or more bytes: nothing is kept, and the reason is said."""
    release.content = content
    with pytest.raises(PolyoloError, match=found):
        fetch(release.model, target)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_is_too_long_is_not_read_to_its_end(release, target):
    """A source that never ends cannot fill the disk."""
    release.content = CONTENT * 100
    told = []
    with pytest.raises(PolyoloError, match="is not m as published"):
        fetch(release.model, target, lambda here, _: told.append(here))
    assert told[-1] <= len(CONTENT) + (1 << 17)


def test_a_release_that_is_gone_says_what_to_do(release, target):
    """An error of the server is explained with the way around it."""
    release.status = 503
    with pytest.raises(NotReadyError, match=r"answered 503.*--from FILE"):
        fetch(release.model, target)


def test_a_file_that_is_there_is_not_fetched_again(release, target):
    """The same file: nothing to do. Another one: never overwritten."""
    target.write_bytes(CONTENT)
    fetch(release.model, target)
    assert release.asked == []
    target.write_bytes(b"mine")
    with pytest.raises(ConflictError, match="--output"):
        fetch(release.model, target)
    assert target.read_bytes() == b"mine"


def test_a_file_from_elsewhere_passes_the_same_checks(release, target, tmp_path):
    """--from takes the published file and nothing else; the source stays."""
    source = tmp_path / "stick.bin"
    for content, found in ((b"short", "has 5 bytes"), (b"\0" * len(CONTENT), "other contents")):
        source.write_bytes(content)
        with pytest.raises(PolyoloError, match=found):
            adopt(release.model, source, target)
        assert list(tmp_path.iterdir()) == [source]
    source.write_bytes(CONTENT)
    adopt(release.model, source, target)
    assert target.read_bytes() == source.read_bytes() == CONTENT
    assert release.asked == []


def test_the_command_pulls_and_says_how_to_push(release, target, monkeypatch, capsys):
    """The file, its class names beside it, and the next command with both."""
    monkeypatch.setitem(CATALOGUE, "m", release.model)
    monkeypatch.chdir(target.parent)
    assert main(["models", "pull", "m"]) == 0
    assert target.read_bytes() == CONTENT
    assert (target.parent / "m.classes.txt").read_text() == "a\nb c\n"
    assert "push NAME m.onnx --classes m.classes.txt" in capsys.readouterr().out


def test_the_command_takes_a_file_and_names_the_output(release, tmp_path, monkeypatch, capsys):
    """--from and --output, for programs."""
    monkeypatch.setitem(CATALOGUE, "m", release.model)
    source, output = tmp_path / "s", tmp_path / "o.onnx"
    source.write_bytes(CONTENT)
    assert (
        main(["models", "pull", "m", "--from", str(source), "--output", str(output), "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "name": "m",
        "file": str(output),
        "classes": str(tmp_path / "o.classes.txt"),
    }
    assert output.read_bytes() == CONTENT


def test_a_bundled_model_can_be_pulled_to_be_pushed(tmp_path, monkeypatch, capsys):
    """pcb:1 is copied out; a second time changes nothing; another file is not overwritten."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["models", "pull", "pcb:1"]) == 0
    assert (tmp_path / "pcb-1.onnx").read_bytes() == models.bundled("pcb", 1).read_bytes()
    (tmp_path / "pcb-1.onnx").write_bytes(b"mine")
    assert main(["models", "pull", "pcb:1"]) == 1
    assert (tmp_path / "pcb-1.onnx").read_bytes() == b"mine"


def test_an_unknown_model_names_the_known_ones(capsys):
    """Who mistypes a name reads what there is."""
    assert main(["models", "pull", "yolo-nano"]) == 1
    assert "yolox-nano, pcb:1, pcb:2" in capsys.readouterr().err


def test_what_ships():
    """Both bundled models and the sample boards are files of the package; others are refused."""
    assert models.every_bundled() == [("pcb", 1), ("pcb", 2)]
    assert models.STANDARD in models.every_bundled()
    for name, version in models.every_bundled():
        assert 0 < models.bundled(name, version).stat().st_size <= 4 << 20
    assert len(models.sample_boards()) >= 2
    with pytest.raises(NotFoundError, match="pcb:1, pcb:2"):
        models.bundled("pcb", 9)


def test_the_catalogue_states_the_release():
    """Size and sha256 of YOLOX-Nano are those of the upstream release, with COCO's 80 classes."""
    nano = CATALOGUE["yolox-nano"]
    assert (nano.size, nano.file_name) == (3_659_407, "yolox_nano.onnx")
    assert nano.sha256 == "c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d"
    assert nano.classes is COCO
    assert len(set(COCO)) == 80


def test_the_classes_are_those_of_the_recorded_boxes():
    """Our list of COCO's names is the one that the recorded results of the model were made with."""
    recorded = Path(__file__).parents[2].parent / "shared/expected/yolox_nano.json"
    if not recorded.exists():
        pytest.skip("needs ../shared/expected/yolox_nano.json, which is not part of the project")
    assert json.loads(recorded.read_text())["class_names"] == list(COCO)
