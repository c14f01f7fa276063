"""What keeps a replica's own port off the network on a cluster of one machine."""

from typing import Any

import ray
from ray.serve._private import replica as serve_replica

_EVERYWHERE = "[::]:0"


def keep_replica_on_loopback() -> None:
    """Make the replica that runs this listen on 127.0.0.1 where its node is reachable there alone.

    Ray Serve 2.60 opens a gRPC port for other deployments on all interfaces, without a setting for it, after the
    replica's `__init__`. It asks for Ray's token, but a laptop needs no port on the network at all.
    """
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    add_port = serve_replica.add_port_to_grpc_server

    def add_local_port(server: Any, address: str) -> Any:
        return add_port(server, "127.0.0.1:0" if address == _EVERYWHERE else address)

    serve_replica.add_port_to_grpc_server = add_local_port
