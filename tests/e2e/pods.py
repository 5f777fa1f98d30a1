"""An emulated cluster for `polyolo up --driver kubernetes`: its pods run the real runtime, and
open strangers' files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.apiserver import KEDA, MONITORING, ApiServer
from tests.cluster.clusters import with_namespace
from tests.cluster.node import Node
from tests.e2e.platform import free_port


@contextmanager
def pods_of(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Run a cluster; yield its kubeconfig, and the options with which a platform uses it."""
    server = ApiServer(without=KEDA | MONITORING, strict="")
    Node(server, (sys.executable, "-m", "polyolo.serving"), root / "pods")
    server.start()
    kubeconfig, settings = root / "kubeconfig", root / "cluster.json"
    kubeconfig.write_text(json.dumps(server.kubeconfig))
    artifacts = f"http://127.0.0.1:{free_port()}/models"
    with_namespace(server, "polyolo-jobs")
    known = {
        "image": "polyolo-serving:test",
        "artifacts": artifacts,
        "leave_s": 0,
        "drain_s": 5,
        "jobs": {},
    }
    settings.write_text(json.dumps(known))
    try:
        yield kubeconfig, ["--driver", "kubernetes", "--cluster", str(settings)]
    finally:
        server.close()
