"""Durable events a second over HTTP, against the event store alone in this process.

Run: PYTHONPATH=. python -m benchmarks.feedback_rate [--seconds 10] [--rounds 3] [--database sqlite]

The service keeps its events in one store; beside it a second store of the same kind is filled without HTTP. Threads
send requests of 1 and of 100 events, all of them new; both sides take turns, and the median of the rounds is told.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from ray import serve

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.session import session
from avrec_ray.types import Event
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.feedback.postgres_server import PostgresServer
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle

THREADS = 8
SIZES = (1, 100)
_numbers = count()

Send = Callable[[list[str]], None]


def main(seconds: float, rounds: int, database: str) -> None:
    """Both sides by turns, and their ratio."""
    server = PostgresServer() if database == "postgresql" else None
    with tempfile.TemporaryDirectory() as folder, session(ClusterConfig(num_cpus=4, object_store_bytes=200_000_000)):
        urls = [server.new_url() if server else f"sqlite:///{folder}/{name}.db" for name in ("served", "alone")]
        bundle = build_tiny_bundle(Path(folder) / "v-rate", 40)
        cfg = ServeConfig(
            bundle=str(bundle), storage_path=folder, feedback=FeedbackConfig(url=urls[0]), port=free_port()
        )
        store = EventStore(urls[1])
        with httpx.Client(base_url=start(cfg), timeout=60, limits=httpx.Limits(max_connections=THREADS)) as client:
            for size in SIZES:
                sides: dict[str, Send] = {"http": partial(post, client), "store": partial(append, store)}
                found: dict[str, list[float]] = {name: [] for name in sides}
                for _ in range(rounds):
                    for name, send in sides.items():
                        found[name].append(events_a_second(send, size, seconds))
                http, alone = median(found["http"]), median(found["store"])
                print(
                    f"requests of {size:>3}: {http:>8.0f} over HTTP, {alone:>8.0f} the store alone, {http / alone:.2f}"
                )
        serve.shutdown()
        store.close()
    if server:
        server.stop()


def events_a_second(send: Send, size: int, seconds: float) -> float:
    """Acknowledged by all threads together."""
    done, until = [0] * THREADS, time.monotonic() + seconds

    def run(number: int) -> None:
        while time.monotonic() < until:
            send([f"e{next(_numbers)}" for _ in range(size)])
            done[number] += size

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - began)


def post(client: httpx.Client, event_ids: list[str]) -> None:
    """Over HTTP; a busy service is asked again."""
    events: list[dict[str, Any]] = [
        {"event_id": e, "user_id": f"u{hash(e) % 1000}", "item_id": "i1", "event": "like"} for e in event_ids
    ]
    while (answer := client.post("/v1/feedback", json={"events": events})).status_code == 429:
        time.sleep(0.01)
    if answer.raise_for_status().json()["accepted"] != len(event_ids):
        raise SystemExit(f"not accepted: {answer.text}")


def append(store: EventStore, event_ids: list[str]) -> None:
    """The same without a service."""
    now = time.time()
    kept = store.append([Event(f"u{hash(e) % 1000}", "i1", "like", now, event_id=e) for e in event_ids], now)
    if kept.accepted != len(event_ids):
        raise SystemExit(f"not accepted: {kept}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.rounds, arguments.database)
