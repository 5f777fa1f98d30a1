"""TLS at the door: needed beyond this machine, self-signed for trials, nothing for plain HTTP."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from polyolo import tls, web
from polyolo.client import Client
from polyolo.errors import InvalidValueError, NotReadyError
from polyolo.gateway.__main__ import settings
from polyolo.tls import Tls


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "yolo.example"])
def test_a_listener_beyond_this_machine_is_refused_without_tls(host):
    """Keys would cross the network in clear; the sentence says what to give."""
    with pytest.raises(InvalidValueError, match="needs TLS: give --tls-cert and --tls-key"):
        tls.chosen(host, None, None, None, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_needs_none(host):
    """On loopback plain HTTP is the default."""
    assert tls.chosen(host, None, None, None, None) is None


def test_the_commands_refuse_with_a_sentence_and_status_one(tmp_path):
    """`polyolo up` and `polyolo gateway` end before they listen or make anything."""
    home = tmp_path / "home"
    for arguments in (
        ["up", "--home", str(home), "--host", "0.0.0.0", "--port", "0"],
        ["gateway", "--control", "unix:/nowhere", "--host", "0.0.0.0", "--token", "x"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "polyolo", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "needs TLS" in done.stderr
        assert "Traceback" not in done.stderr
    assert not home.exists()
    with pytest.raises(InvalidValueError):
        settings(
            ["--control", "unix:/nowhere", "--host", "0.0.0.0"], {"POLYOLO_GATEWAY_TOKEN": "x"}
        )


def test_files_that_are_no_pair_are_refused(tmp_path):
    """One without the other, a missing file, a key of another certificate."""
    one = tls.self_signed(tmp_path / "one", "localhost")
    two = tls.self_signed(tmp_path / "two", "localhost")
    assert tls.chosen("0.0.0.0", None, None, one.certificate, one.key) == one
    for certificate, key in (
        (one.certificate, None),
        (None, one.key),
        (one.certificate, tmp_path / "missing.pem"),
        (one.certificate, two.key),
        (one.key, one.certificate),
    ):
        with pytest.raises(InvalidValueError):
            tls.chosen("127.0.0.1", None, None, certificate, key)


def test_a_self_signed_certificate_is_kept_private_and_made_anew_for_another_host(tmp_path):
    """The same files at the next start; the home that it makes is nobody else's to read."""
    home = tmp_path / "home"
    made = tls.chosen("0.0.0.0", home, "self-signed", None, None)
    assert made is not None
    assert home.stat().st_mode & 0o777 == 0o700
    assert made.key.stat().st_mode & 0o777 == 0o600
    first = tls.fingerprint(made)
    assert tls.chosen("0.0.0.0", home, "self-signed", None, None) == made
    assert tls.fingerprint(made) == first
    tls.chosen("192.0.2.7", home, "self-signed", None, None)
    assert tls.fingerprint(made) != first


async def hello(scope, receive, send) -> None:
    await web.json_response({"scheme": scope["scheme"]})(scope, receive, send)


async def served(spoken: Tls, ask) -> None:
    """Serve over TLS, and call `ask` in a thread with the port."""
    listener, stop = web.bind(host="127.0.0.1", port=0), asyncio.Event()
    task = asyncio.create_task(web.serve(hello, listener, stop=stop, drain_s=1, tls=spoken))
    try:
        await asyncio.to_thread(ask, listener.getsockname()[1])
    finally:
        stop.set()
        await task


async def test_tls_is_spoken_with_hsts_and_plain_http_gets_nothing(tmp_path):
    """Over TLS an answer that tells browsers to stay with it; without, a closed connection."""
    spoken = tls.self_signed(tmp_path, "127.0.0.1")

    def ask(port: int) -> None:
        trust = ssl.create_default_context(cafile=str(spoken.certificate))
        answer = httpx.get(f"https://127.0.0.1:{port}/", verify=trust)
        assert answer.json() == {"scheme": "https"}
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/")
        old = ssl.create_default_context(cafile=str(spoken.certificate))
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"https://127.0.0.1:{port}/", verify=old).status_code == 200

    await served(spoken, ask)


async def test_the_sdk_trusts_what_it_is_told_to(tmp_path):
    """A self-signed service needs its certificate named; the failure says how, without retries."""
    spoken = tls.self_signed(tmp_path, "127.0.0.1")

    def ask(port: int) -> None:
        url = f"https://127.0.0.1:{port}"
        with (
            Client(url, "pk_x") as stranger,
            pytest.raises(NotReadyError, match="--ca or POLYOLO_CA"),
        ):
            stranger.list_keys()
        with Client(url, "pk_x", ca=spoken.certificate) as client:
            assert client._http.get(url).json() == {"scheme": "https"}

    await served(spoken, ask)
    with pytest.raises(InvalidValueError, match="no certificates"):
        Client("https://127.0.0.1", "pk_x", ca=Path(__file__))
