"""What holds for every test."""

import os

# gRPC's fork handlers stop a fork while its engine runs; tests start processes all the time, and
# the programs that speak gRPC switch them off too.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
