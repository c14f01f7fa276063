"""Run in a process of its own: a cluster as a job starts it, with a service on it; says what listens where, as JSON."""

import json
import os
import socket
import sys
from pathlib import Path

import psutil
import ray
from ray import serve

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.pipelines.session import session
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.tiny_bundle import build_tiny_bundle


def listeners() -> list[tuple[str, int, str]]:
    """(address, port, name of the process) of every TCP socket on which this process or one below it listens."""
    mine = {process.pid: process for process in [psutil.Process(), *psutil.Process().children(recursive=True)]}
    return sorted(
        (found.laddr.ip, found.laddr.port, mine[found.pid].name())
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.pid in mine
    )


def main(folder: Path) -> None:
    bundle = build_tiny_bundle(folder / "v-tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with session(ClusterConfig(num_cpus=4, object_store_bytes=100_000_000)):
        start(ServeConfig(bundle=str(bundle), storage_path=str(folder), port=port), ready_timeout_seconds=200)
        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        print(json.dumps({"listeners": listeners(), "port": port, "gcs": address, "token": len(token)}))
        serve.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
