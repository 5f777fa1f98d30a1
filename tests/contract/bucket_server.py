"""A bucket's server in a process of its own, for tests of what keeps objects in one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from polyolo.control.bucket import Access


@contextmanager
def bucket(name: str = "models", host: str = "127.0.0.1") -> Iterator[Access]:
    """Run a server with one empty bucket; give the access to it. host: address that it is at."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, host],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PATH": os.defpath, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    try:
        assert server.stdout is not None
        url = f"http://{host}:{int(server.stdout.readline())}"
        with httpx.Client(trust_env=False) as http:
            deadline = time.monotonic() + 10
            while http.put(f"{url}/{name}").status_code != 200:
                assert time.monotonic() < deadline
        yield Access(endpoint=url, access_key_id="key", secret_access_key="secret")
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


_SERVER = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from polyolo.lifeline import die_with_parent
from werkzeug.serving import make_server
die_with_parent()
app = DomainDispatcherApplication(create_backend_app)
server = make_server(sys.argv[1], 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
