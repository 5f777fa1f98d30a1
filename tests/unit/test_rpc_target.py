"""Where gRPC is, given where HTTP is: one rule for runtimes and gateways."""

from __future__ import annotations

import socket

import pytest

from polyolo import web


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("unix:/run/t_1/runtime.sock", "unix:/run/t_1/grpc.sock"),
        ("http://127.0.0.1:8800", "127.0.0.1:8801"),
        ("http://runtime.namespace:80", "runtime.namespace:81"),
        ("http://[::1]:8700", "[::1]:8701"),
    ],
)
def test_grpc_is_beside_the_socket_or_on_the_port_behind(endpoint: str, target: str):
    """As gRPC names addresses."""
    assert web.rpc_target(endpoint) == target


def test_the_last_port_has_none_behind_it():
    """Said in a sentence, by the rule and by the reservation."""
    with pytest.raises(OSError, match="choose a lower one"):
        web.rpc_target("http://127.0.0.1:65535")
    with pytest.raises(OSError, match="no such port"):
        web.reserve("127.0.0.1", 65536)


def test_a_reserved_port_is_taken_for_others_and_free_for_our_own():
    """A listener that shares ports gets in beside the reservation, any other is refused."""
    with web.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="cannot listen"):
            web.bind(host="127.0.0.1", port=port)
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="for gRPC"):
            web.reserve("127.0.0.1", other.getsockname()[1])
