"""A push goes on by itself where it stopped: the platform killed, the program killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np

from polyolo.client import Client
from tests.e2e.platform import POLYOLO, Platform, eventually, processes_below
from tests.e2e.test_nothing_in_clear import found_in
from tests.unit import hostile_graphs

MIB = 1 << 20


def large(path: Path) -> Path:
    """Write a good model of 24 MiB, most of it a weight that nothing uses; as many pieces."""
    model = hostile_graphs.good()
    noise = np.random.default_rng(7).integers(0, 256, 24 * MIB, np.uint8)
    model.graph.initializer.append(hostile_graphs.constant("unused", noise))
    path.write_bytes(model.SerializeToString())
    return path


def test_a_push_survives_the_platform_and_the_program(fresh_platform: Platform, tmp_path: Path):
    """kill -9 of the platform in the middle, then of the client: the third goes on behind both."""
    fresh_platform.start()
    _, client = fresh_platform.tenant("acme")
    file = large(tmp_path / "large.onnx")
    restarting = []

    def restart() -> None:
        assert fresh_platform.process is not None
        fresh_platform.process.kill()
        fresh_platform.process.wait()
        fresh_platform.start()

    def at(sent: int, _: int) -> None:
        if sent >= 12 * MIB and not restarting:
            restarting.append(threading.Thread(target=restart))
            restarting[0].start()

    with client:
        version = client.push_model("city", file, progress=at)
        restarting[0].join()
        assert version.size == file.stat().st_size
        assert [upload.state for upload in client.list_uploads()] == ["ready"]

        command = [POLYOLO, "models", "push", "farm", str(file)]
        environment = os.environ | {
            "POLYOLO_URL": fresh_platform.url,
            "POLYOLO_API_KEY": client.api_key or "",
        }
        begun = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        first = eventually(
            lambda: next((u.id for u in client.list_uploads() if u.model == "farm"), None),
            within=10,
            what="the push has begun",
        )
        begun.send_signal(signal.SIGKILL)
        begun.wait()
        received = settled(client, first)
        told: list[int] = []
        again = client.push_model("farm", file, progress=lambda sent, _: told.append(sent))
        assert again.digest == version.digest
        assert [u.id for u in client.list_uploads() if u.model == "farm"] == [first]
        if received < version.size:
            assert min(told) > received
        kept = fresh_platform.home / "artifacts"
        names = [entry.name for entry in kept.rglob("*") if entry.is_file()]
        assert names.count(version.digest) == 1
        assert not [name for name in names if len(name) != 64]
        kept_in_clear_nowhere(fresh_platform, file)


def kept_in_clear_nowhere(platform: Platform, file: Path) -> None:
    """Neither the model nor the key that opens it lies in a file, a log or a command line."""
    environments = [Path(f"/proc/{pid}/environ") for pid, _ in processes_below(platform.home)]
    variables = [line for one in environments for line in one.read_bytes().split(b"\0")]
    keys = [v.partition(b"=")[2] for v in variables if v.startswith(b"POLYOLO_ARTIFACT_KEY=")]
    # A runtime that was started for the tenant has it; one that was warm was told it by its socket,
    # and the gateway and the models' processes never have it.
    assert len(keys) <= 1
    with file.open("rb") as model:
        model.seek(10 * MIB)
        canaries = {"model": model.read(64)}
    for key in keys:
        canaries |= {"key": key, "raw key": bytes.fromhex(key.decode())}
    found = found_in(platform.home, canaries)
    assert [place for place in found if not place.endswith("/environ")] == []


def settled(client: Client, upload: str) -> int:
    """Return how much has come of an upload, once nothing comes any more."""
    seen = [-1]

    def still() -> bool:
        seen.append(client.get_upload(upload).received)
        return seen[-1] == seen[-2]

    eventually(still, within=10, what="the broken connection is noticed")
    return seen[-1]
