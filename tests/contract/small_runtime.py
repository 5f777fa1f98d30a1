"""A runtime that serves no model: speaks the runtime's protocol for tests of what starts one.

Started as `python small_runtime.py --spec FILE --socket PATH [--ahead]`; ahead of its spec it
waits for one to be pushed. Or with `--host` and `--port`, as a pod would be; it then fetches no
model. The spec's default model asks for mischief: `crash` exits at once with status 3, `stubborn`
ignores SIGTERM, `refused` is refused when pushed.
"""

import argparse
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn, UnixStreamServer


def standing(spec):
    if spec is None:
        return {"tenant": "", "phase": "starting"}
    models = [
        {"name": model["name"], "version": model["current"], "state": "ready"}
        for model in spec["models"]
    ]
    report = Path("report.json")  # what a test wants to be told of the models
    if report.exists():
        models = json.loads(report.read_text())
    return {
        "tenant": spec["tenant"],
        "phase": "ready",
        "observed_generation": spec["generation"],
        "models": models,
    }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/environment":
            self.answer({"environment": dict(os.environ), "directory": str(Path.cwd())})
        else:
            self.answer(standing(self.server.spec))

    def do_PUT(self):
        fresh = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.spec is None and fresh["default_model"] == "crash":
            os._exit(3)
        if fresh["default_model"] == "refused":
            self.answer({}, 422)
            return
        for model in fresh["models"]:
            for version in model["versions"]:
                file = Path(version["uri"])
                if "://" in version["uri"] or version["uri"].startswith("storage:"):
                    continue
                assert file.is_file(), f"{file} is not there"
        if self.server.spec is None or fresh["generation"] > self.server.spec["generation"]:
            self.server.spec = fresh
        self.answer(standing(self.server.spec), 202)

    def answer(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    spec = None

    def asked_to_end(self, *_):
        if self.spec is None or self.spec["default_model"] != "stubborn":
            os._exit(0)


class PodServer(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    spec = None
    asked_to_end = Server.asked_to_end


def main():
    from polyolo.lifeline import die_with_parent

    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--ahead", action="store_true")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--models")
    asked = parser.parse_args()
    spec = None if asked.ahead else json.loads(asked.spec.read_bytes())
    print("started with generation", spec and spec["generation"], flush=True)
    if spec is not None and spec["default_model"] == "crash":
        sys.exit(3)
    if asked.socket is None:
        server = PodServer((asked.host, asked.port), Handler)
    else:
        asked.socket.unlink(missing_ok=True)
        server = Server(str(asked.socket), Handler)
    server.spec = spec
    signal.signal(signal.SIGTERM, server.asked_to_end)
    server.serve_forever()


main()
