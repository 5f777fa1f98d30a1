"""Control's end of a task, with somebody at the other who says what it likes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from polyolo.drivers.kubernetes import exchange
from polyolo.sandbox import receiver
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending


class Impostor:
    """Somebody at a pod's address that says what it likes."""

    def __init__(self, *said: bytes) -> None:
        self._said = said
        self.near, self._far = socket.socketpair()
        threading.Thread(target=self._talk, daemon=True).start()

    def _talk(self) -> None:
        with self._far, suppress(OSError):
            for one in self._said:
                self._far.sendall(one)
            while self._far.recv(1 << 16):
                pass


def request(**changes: Any) -> exchange.Request:
    values: dict[str, Any] = {
        "file": 0,
        "size": 0,
        "command": (),
        "words": (),
        "confinement": Confinement(file_bytes=1000),
        "time_s": 1.0,
        "output_bytes": 1000,
        "result": None,
    }
    return exchange.Request(**(values | changes))


def framed(document: Any) -> bytes:
    encoded = json.dumps(document).encode()
    return len(encoded).to_bytes(4, "big") + encoded


@pytest.mark.parametrize("sizes", [(1001, 0, 0), (0, 1 << 20, 0), (0, 0, 1001), (-1, 0, 0)])
def test_an_answer_is_no_larger_than_asked_for(sizes: tuple[int, int, int]):
    """Whatever a hostile program says in the receiver's name."""
    document = {"ending": "exited", "code": 0, "sizes": sizes}
    result = os.memfd_create("result")
    with Impostor(framed(document), b"x" * 5000).near as near:
        outcome = exchange.hear(near, request(result=result), time.monotonic() + 5)
    assert outcome.ending is Ending.OUTPUT
    assert os.fstat(result).st_size == 0
    os.close(result)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        framed([]),
        framed({"ending": "well"}),
        framed({"sizes": [1]}),
        framed({"ending": "exited", "code": "0", "sizes": [0, 0, 0]}),
        (5).to_bytes(4, "big") + b"nonse",
        (60_000).to_bytes(4, "big") + b"[" * 60_000,
        (5).to_bytes(4, "big") + b"\xff\xff\xff\xff\xff",
    ],
)
def test_what_is_no_answer_is_none(said: bytes):
    """Nonsense ends in one kind of error."""
    with Impostor(said).near as near, pytest.raises(ValueError, match=r"."):
        exchange.hear(near, request(), time.monotonic() + 5)


def test_an_answer_that_never_ends_is_broken_off():
    """By the clock, whether there is a byte of it now and then, or none."""
    with Impostor(b"\0").near as near, pytest.raises(TimeoutError):
        exchange.hear(near, request(), time.monotonic() + 0.2)
    document = framed({"ending": "exited", "code": 0, "sizes": [1000, 0, 0]})
    near, far = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        far.sendall(document)
        while not over.wait(0.02):
            far.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    with near, pytest.raises(TimeoutError):
        exchange.hear(near, request(), time.monotonic() + 0.3)
    over.set()
    dripping.join()
    far.close()


def test_a_pod_that_cannot_confine_is_told_apart():
    """It is no fault of the file's; nothing is made of it."""
    near = Impostor(framed({"unfit": "no seccomp"})).near
    with near, pytest.raises(exchange.UnfitError, match="no seccomp"):
        exchange.hear(near, request(), time.monotonic() + 5)


@pytest.fixture
def elsewhere() -> str:
    """Give an address of this machine that nothing else listens on."""
    return f"127.{220 + os.getpid() % 30}.{os.getpid() // 30 % 250}.9"


def test_a_pod_that_nobody_comes_to_ends(elsewhere: str):
    """Control was killed before it could."""
    mine, theirs = receiver.proofs(b"key")
    with pytest.raises(TimeoutError):
        receiver._accepted(elsewhere, mine, theirs, 0.1)


def test_who_has_the_pods_address_now_gets_no_file(elsewhere: str):
    """Without the task's key there is no answer that control takes; it hears one word."""
    heard: list[bytes] = []
    with socket.create_server((elsewhere, receiver.PORT)) as listener:

        def stand() -> None:
            for reply in (b"", b"x" * 32):
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(1 << 16))
                    connection.sendall(reply)
                    if not reply:
                        connection.shutdown(socket.SHUT_WR)
                    heard.append(connection.recv(1 << 16))

        thread = threading.Thread(target=stand)
        thread.start()
        for why in ("gone", "somebody else"):
            with pytest.raises(OSError, match=why):
                exchange.met(elsewhere, "ab" * 32, 5.0)
        thread.join()
    _, word = receiver.proofs(bytes.fromhex("ab" * 32))
    assert heard == [word, b"", word, b""]
