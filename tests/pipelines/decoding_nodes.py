"""A cluster of three nodes on one machine, of which two decode and one is killed; in a process of its own.

Run: python -m tests.pipelines.decoding_nodes FOLDER. Prints a JSON object last.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.pipelines.decode_media import decode_manifest
from avrec_ray.pipelines.session import session
from tests.pipelines.killed_decoding import CFG, blocks_done

STORE_BYTES = 100_000_000


def main(folder: Path) -> None:
    """Decode; kill a node that decodes after a few blocks."""
    head = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, resources={"decode": 1}, object_store_memory=STORE_BYTES) for _ in range(2)]
    clips = folder / "clips"
    lines: list[str] = []

    def decode() -> None:
        counts = decode_manifest(
            str(folder / "items.parquet"), str(clips), str(folder / "quarantine"), CFG, 2, lines.append,
            decoder="tests.pipelines.slow_decoder:slowly", resource="decode",
        )  # fmt: skip
        lines.append(f"decoded {counts['items_decoded']:.0f}")

    with session(ClusterConfig(address=cluster.address)):
        thread = threading.Thread(target=decode)
        thread.start()
        while blocks_done(clips) < 8:
            time.sleep(0.01)
        actors = [actors_on(node) for node in (cluster.head_node, *nodes)]
        done = blocks_done(clips)
        cluster.remove_node(nodes[0], allow_graceful=False)
        thread.join()
        alive = sum(node["Alive"] for node in ray.nodes())
    cluster.shutdown()
    print(json.dumps({"actors": actors, "done": done, "alive": alive, "lines": lines}))


def actors_on(node: Any) -> int:
    """Decode actors among the processes of a node."""
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children()
    return sum("DecodeBlocks" in " ".join(worker.cmdline()) for worker in workers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
