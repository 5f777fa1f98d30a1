"""`polyolo detect`: which pictures, in what order, and what one broken picture changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyolo.cli import main
from polyolo.cli.detect import annotated_names, find_pictures
from tests.unit.recorded_service import ANSWER, Says, Service, problem, running_service


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_API_KEY", "pk_tenant")
        yield service


@pytest.fixture
def shots(tmp_path) -> Path:
    """Give a folder with pictures, other files and a folder in it."""
    folder = tmp_path / "shots"
    (folder / "more").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "c.webp", "notes.txt", "more/d.bmp"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_files_folders_and_patterns_are_found_once_in_order(shots):
    """A folder gives its pictures, a pattern what it matches; a picture named twice counts once."""
    found = find_pictures([str(shots / "b.jpg"), str(shots), str(shots / "**" / "*.bmp")])
    assert [path.name for path in found] == ["b.jpg", "a.PNG", "c.webp", "d.bmp"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path):
    """A file that exists is taken by its name; a pattern without a match stays, to be reported."""
    (tmp_path / "[1].jpg").write_bytes(b"x")
    names = [str(tmp_path / "[1].jpg"), str(tmp_path / "*.png")]
    assert [str(path) for path in find_pictures(names)] == names


def test_an_annotated_copy_never_replaces_anything(tmp_path):
    """Copies beside the originals, and copies of namesakes, get names of their own."""
    files = [tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "x/a.jpg", tmp_path / "b.png"]
    names = annotated_names(files, tmp_path)
    assert [names[file].name for file in files] == ["a-2.jpg", "a-3.jpg", "a-4.jpg", "b.jpg"]


def test_detections_for_people(capsys, service, shots):
    """A table names picture, model, class, confidence, box and time."""
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    assert main(["detect", str(shots / "b.jpg"), "--classes", "tv,3", "--model", "city"]) == 0
    said = capsys.readouterr()
    for part in ("b.jpg", "city:3", "tv", "0.900", "6 166 156 265", "11.4", "1 picture, 1 detec"):
        assert part in said.out
    assert said.err == ""
    assert service.seen[0].query == [("model", "city"), ("classes", "tv,3")]


def test_detections_for_programs(capsys, service, shots):
    """--json is one list in the order of the arguments, each picture's answer with its file."""
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    assert main(["detect", str(shots), "--json"]) == 0
    said = capsys.readouterr()
    files = [str(shots / name) for name in ("a.PNG", "b.jpg", "c.webp")]
    assert json.loads(said.out) == [{"file": file} | ANSWER for file in files]
    assert said.err == ""


def test_one_broken_picture_does_not_stop_the_others(capsys, service, shots):
    """The others are answered; the broken one is named; the status is 1."""
    broken = problem(422, "undecodable-image", "The picture ends too early.")
    service.on("POST", "/v1/detect", Says(body=ANSWER), broken, Says(body=ANSWER))
    files = [str(shots / name) for name in ("a.PNG", "b.jpg", "c.webp", "gone.jpg")]
    assert main(["detect", *files, "--json", "--in-flight", "1"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [entry["file"] for entry in document] == files
    assert [entry.get("error") for entry in document] == [
        *(None, "The picture ends too early.", None, "No such file or directory"),
    ]
    assert said.err.splitlines() == [
        f"polyolo: {files[1]}: The picture ends too early.",
        f"polyolo: {files[3]}: No such file or directory",
        "polyolo: 2 of 4 pictures failed",
    ]


def test_what_concerns_every_picture_is_said_once(capsys, service, shots):
    """A refused key stops the command: asking again for each picture would not help."""
    service.on("POST", "/v1/detect", problem(401, "unauthenticated", "This key is revoked."))
    assert main(["detect", str(shots), "--in-flight", "1"]) == 1
    assert capsys.readouterr().err == "polyolo: This key is revoked.\n"
    assert len(service.seen) == 1


def test_an_empty_folder_is_said_to_be_empty(capsys, service, tmp_path):
    """A folder without pictures is a failure that says so."""
    assert main(["detect", str(tmp_path)]) == 1
    assert "holds no picture" in capsys.readouterr().err


def test_annotated_pictures_are_saved(capsys, service, shots, tmp_path):
    """--save asks for each picture drawn, writes it into the directory and says so."""
    service.on("POST", "/v1/detect", Says(body=ANSWER), Says(body=b"drawn"))
    out = tmp_path / "deep" / "out"
    options = ["--save", str(out), "--confidence", "0.5"]
    assert main(["detect", str(shots / "b.jpg"), *options]) == 0
    assert (out / "b.jpg").read_bytes() == b"drawn"
    assert f"Annotated pictures are in {out}." in capsys.readouterr().out
    assert [seen.headers["accept"] for seen in service.seen] == ["application/json", "image/jpeg"]
    assert [seen.query for seen in service.seen] == [[("confidence", "0.5")]] * 2


def test_several_pictures_are_in_flight_at_once(service, shots):
    """Four pictures are sent before the first is answered; never more than asked for."""
    for number in range(6):
        (shots / f"n{number}.jpg").write_bytes(b"x")
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    service.hold_until(4)
    assert main(["detect", str(shots)]) == 0
    assert len(service.seen) == 9
    assert service.most_at_once == 4
