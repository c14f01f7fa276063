"""The event store's writer killed (SIGKILL) over and over, on PostgreSQL the server too: is anything lost or doubled?

Run: PYTHONPATH=. python benchmarks/store_kills.py [--kills 100] [--database sqlite|postgresql] [--seed 0]

A process appends from three threads, three events a request, and says in a pipe what it sends and what was
acknowledged. It dies at random moments; so does the postmaster, which is then started again, and a writer that lives
sends again what was not acknowledged. At the end: all that was acknowledged is stored, only what was sent is stored,
nothing is stored or exported twice. Exit status 1 if not. These are deaths of processes: what power failure does to a
disk is not tried.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.feedback.killed_store import check, kill_over_and_over
from tests.feedback.postgres_server import PostgresServer


def main(num_kills: int, database: str, seed: int) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer() if database == "postgresql" else None
        url = server.new_url() if server else f"sqlite:///{Path(folder) / 'events.db'}"
        try:
            evidence, kills = kill_over_and_over(url, num_kills, random.Random(seed), server)
            check(url, evidence)
        finally:
            if server:
                server.stop()
    print(
        f"{database}, seed {seed}: {kills['writer']} kills of the writer, {kills['server']} of the server; "
        f"{len(evidence.sent)} events sent, {len(evidence.acknowledged)} acknowledged, "
        f"{len(evidence.exported)} stored; "
        f"0 lost, 0 twice; {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.database, arguments.seed)
