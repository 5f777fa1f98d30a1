"""What holds for every test."""

import os
from pathlib import Path

import pytest

# gRPC's fork handlers stop a fork while its engine runs; tests start processes all the time, and
# the programs that speak gRPC switch them off too.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give directories short names: the path of a socket in them has room for 107 bytes."""
    return tmp_path_factory.mktemp("t")
