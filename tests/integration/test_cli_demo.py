"""`polyolo demo`: shows the main job, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

from polyolo.cli import temporary
from polyolo.client import Client
from polyolo.errors import NotReadyError, PolyoloError
from polyolo.models import sample_boards


@pytest.fixture
def places(monkeypatch, tmp_path) -> Path:  # tmp_path first: it looks at TMPDIR as well
    """Give the directory, short enough for a socket's name, that temporary homes go to."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
        yield Path(folder)


def processes_naming(folder: Path) -> list[str]:
    """Return the command lines of living processes that name something in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended while we looked
        if str(folder) in command and int(entry.name) != os.getpid():
            found.append(command)
    return found


def eventually(look, within: float):
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)
    return seen


@contextmanager
def running_demo(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the demo; end it if the test does not."""
    command = [sys.executable, "-m", "polyolo", "demo", "--output", output]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def test_the_demo_shows_the_main_job_and_leaves_nothing(places, tmp_path):
    """Detections of both tenants, a picture, checks that hold, usage; then all is gone."""
    with running_demo(tmp_path / "out") as demo:
        out, err = demo.communicate(timeout=100)
    assert demo.returncode == 0, out + err
    assert err == ""
    assert "standard:" in out
    assert "boards:1" in out
    assert re.search(r"missing_hole +0\.\d{3}", out)
    assert out.count(" ok") >= 10
    assert "FAILED" not in out
    drawn = tmp_path / "out" / f"{sample_boards()[0].stem}-detected.jpg"
    assert str(drawn) in out
    assert cv2.imread(str(drawn)).shape == cv2.imread(str(sample_boards()[0])).shape
    assert list(places.iterdir()) == []
    assert processes_naming(places) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_cleans_up(places, tmp_path, number):
    """Ctrl-C or SIGTERM in the middle: no process and no file stays."""
    with running_demo(tmp_path / "out") as demo:
        eventually(lambda: list(places.glob("*/home/operator.key")), within=30)
        demo.send_signal(number)
        demo.communicate(timeout=60)
    assert demo.returncode == 128 + number
    assert list(places.iterdir()) == []
    assert processes_naming(places) == []


def test_a_demo_that_is_killed_leaves_no_process(places, tmp_path):
    """kill -9 takes the platform along (its files stay: nobody is left to remove them)."""
    with running_demo(tmp_path / "out") as demo:
        eventually(lambda: list(places.glob("*/home/run/*/runtime.json")), within=60)
        demo.kill()
        demo.communicate(timeout=10)
    eventually(lambda: not processes_naming(places), within=10)


def test_a_platform_that_does_not_start_says_why(places, capsys):
    """The end of the platform's log is shown, nothing stays."""
    with pytest.raises(NotReadyError, match="as it started"), temporary.platform("nonsuch:9"):
        pytest.fail("a platform with a model that does not exist is not ready")
    assert "nonsuch" in capsys.readouterr().err
    assert list(places.iterdir()) == []


def test_a_failure_inside_shows_the_log_and_takes_all_down(places, capsys):
    """What fails while the platform runs is raised after the platform is gone."""

    def fail() -> None:
        with temporary.platform() as running:
            assert processes_naming(places)
            raise PolyoloError(f"planted at {running.url}")

    with pytest.raises(PolyoloError, match="planted"):
        fail()
    assert "the platform's log ends with" in capsys.readouterr().err
    assert processes_naming(places) == []
    assert list(places.iterdir()) == []


def test_a_deep_temporary_directory_is_no_obstacle(places, monkeypatch):
    """Where TMPDIR leaves no room for a socket's path, /tmp is taken."""
    deep = places / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with temporary.platform() as running, Client(running.url, running.operator_key) as operator:
        tenant = operator.create_tenant("acme")
        assert tenant.api_key is not None
        with Client(running.url, tenant.api_key.key) as client:
            assert client.detect(sample_boards()[0]).detections
    assert not running.home.exists()


def test_a_process_that_is_left_behind_is_found_and_killed(tmp_path):
    """A planted orphan in a session of its own is seen, named and ended."""
    note = tmp_path / "pid"
    script = f"setsid sleep 300 & echo $! > {note}; exec sleep 300"
    process = subprocess.Popen(["sh", "-c", script])  # ended by what is tested
    eventually(lambda: note.exists() and note.read_text().strip(), within=5)
    orphan = int(note.read_text())
    assert temporary._take_down(process) == [orphan]
    eventually(lambda: temporary._started(orphan) is None, within=5)
    assert process.returncode == -signal.SIGTERM
