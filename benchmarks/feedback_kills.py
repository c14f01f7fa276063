"""Feedback over HTTP while gateways, the controller, the proxy, whole nodes and the database are killed (SIGKILL).

Run: PYTHONPATH=. python -m benchmarks.feedback_kills [--kills 100] [--events 10000] [--database sqlite] [--seed 0]

A cluster of three nodes on this machine serves a small bundle from two gateway replicas. Clients post events, ten a
request; a request that got no answer or an error is mostly sent again, and sometimes given up. At the end: all that was
acknowledged is stored, only what was sent is stored, nothing is stored or exported twice. Exit status 1 if not. After
each kill it waits until events are acknowledged again, and tells how long that took. These are deaths of processes:
what power failure does to a disk is not tried.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from ray import serve
from ray.cluster_utils import Cluster

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.session import session
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.feedback.postgres_server import PostgresServer
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle

CLIENTS, EVENTS_A_REQUEST, GIVE_UP = 4, 10, 0.1
STORE_BYTES = 100_000_000
RECOVERY_SECONDS = 300.0
NODE = {"num_cpus": 3, "object_store_memory": STORE_BYTES}
TITLES = {
    "gateway": "gateway", "matcher": "matcher", "reranker": "reranker", "controller": "ServeController",
    "proxy": "ProxyActor",
}  # fmt: skip


def head_node() -> Cluster:
    """The first node of a cluster on this machine."""
    # Before any node starts, as production.env does it: else those that start sooner run at nice 15, and Serve's proxy
    # starves beside every replica that starts.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})


@dataclass
class Clients:
    """Threads that post events, and what they saw."""

    url: str
    seed: int
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        """Post until told to stop."""
        rng, count = random.Random(f"{self.seed}-{number}"), 0
        while not self.stopping.is_set():
            ids = [f"c{number}-{count + place}" for place in range(EVENTS_A_REQUEST)]
            count += len(ids)
            self.sent.update(ids)
            body = {"events": [event(event_id, rng) for event_id in ids]}
            while not self._post(body) and not self.stopping.is_set() and rng.random() > GIVE_UP:
                time.sleep(0.05)

    def _post(self, body: dict[str, Any]) -> bool:
        try:
            # A connection each: one to a proxy that died would fail for as long as it is kept.
            answer = httpx.post(f"{self.url}/v1/feedback", json=body, timeout=10.0)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return False
        self.answers[str(answer.status_code)] += 1
        if answer.status_code != 200:
            return False
        told = answer.json()
        if told["rejected"]:
            raise SystemExit(f"events were rejected: {told}")
        self.acknowledged.update(e["event_id"] for e in body["events"])
        return True


def event(event_id: str, rng: random.Random) -> dict[str, Any]:
    """A like; the time is given, so that sending it again is the same event."""
    return {
        "event_id": event_id, "user_id": f"u{rng.randrange(50)}", "item_id": f"i{rng.randrange(20)}",
        "event": "like", "at": 1_700_000_000 + rng.randrange(1_000_000),
    }  # fmt: skip


class Killer:
    """Kills one thing at a time, and brings back what does not come back by itself."""

    def __init__(self, cluster: Cluster, database: PostgresServer | None, seed: int) -> None:
        self._cluster = cluster
        self._workers = [cluster.add_node(**NODE) for _ in range(2)]
        self._database = database
        self._rng = random.Random(seed)
        # Ray Serve takes half a minute to bring its proxy back, which nobody can post to meanwhile: rarely.
        kinds = ["gateway"] * 12 + ["controller"] * 4 + ["node"] * 3 + ["proxy"]
        self._kinds = kinds + (["database"] * 6 if database else [])

    def kill(self) -> str:
        """One kill; returns what was killed."""
        return self.kill_one(self._rng.choice(self._kinds))

    def kill_one(self, kind: str) -> str:
        """As `kill`, of one kind."""
        if kind == "node":
            node = self._workers.pop(self._rng.randrange(len(self._workers)))
            self._cluster.remove_node(node, allow_graceful=False)
            self._workers.append(self._cluster.add_node(**NODE))
        elif kind == "database":
            assert self._database is not None
            self._database.kill()
            self._database.start()
        else:
            found = [p for p in psutil.Process().children(recursive=True) if TITLES[kind] in title_of(p)]
            if not found:
                return "nothing"
            self._rng.choice(sorted(found, key=lambda process: process.pid)).kill()
        return kind


def title_of(process: psutil.Process) -> str:
    """What a Ray worker calls itself; empty if it is gone."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    return title if title.startswith("ray::") else ""


def run_kills(num_kills: int, num_events: int, killer: Killer, clients: Clients) -> dict[str, list[float]]:
    """Kill until both numbers are reached; seconds to the next acknowledgement, by what was killed."""
    seconds: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(clients.seed)
    while sum(map(len, seconds.values())) < num_kills or len(clients.acknowledged) < num_events:
        time.sleep(rng.uniform(0.0, 1.0))  # a kill at any moment of a request
        kind = killer.kill()
        if kind == "nothing":
            continue
        began, known = time.monotonic(), len(clients.acknowledged)
        wait_until(lambda known=known: len(clients.acknowledged) > known)  # type: ignore[misc]
        seconds[kind].append(time.monotonic() - began)
        if not sum(map(len, seconds.values())) % 10:
            print(f"{sum(map(len, seconds.values()))} kills, {len(clients.acknowledged)} acknowledged", flush=True)
    return seconds


def wait_until(is_true: Callable[[], bool]) -> None:
    """Poll, with an end."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f"no event was acknowledged for {RECOVERY_SECONDS:.0f} s after a kill")
        time.sleep(0.02)


def check(url: str, clients: Clients) -> None:
    """Acknowledged is in stored, stored in sent, nothing twice."""
    store = EventStore(url)
    table, _ = store.export_interactions()
    stored = table["event_id"].to_pylist()
    store.close()
    lost, invented = clients.acknowledged - set(stored), set(stored) - clients.sent
    twice = len(stored) - len(set(stored))
    print(
        f"{len(clients.sent)} sent, {len(clients.acknowledged)} acknowledged, {len(stored)} stored: "
        f"{len(lost)} lost, {twice} twice, {len(invented)} never sent"
    )
    if lost or invented or twice:
        raise SystemExit(1)


def main(num_kills: int, num_events: int, database: str, seed: int) -> None:
    """Serve, post, kill, look."""
    began = time.monotonic()
    server = PostgresServer() if database == "postgresql" else None
    cluster = head_node()
    with tempfile.TemporaryDirectory() as folder, session(ClusterConfig(address=cluster.address)):
        url = server.new_url() if server else f"sqlite:///{Path(folder) / 'events.db'}"
        killer = Killer(cluster, server, seed)
        bundle = build_tiny_bundle(Path(folder) / "v-kills", 40)
        cfg = ServeConfig(
            bundle=str(bundle), storage_path=folder, feedback=FeedbackConfig(url=url), port=free_port(),
            gateway_replicas=2,
        )  # fmt: skip
        clients = Clients(start(cfg), seed)
        threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            seconds = run_kills(num_kills, num_events, killer, clients)
        finally:
            clients.stopping.set()
            for thread in threads:
                thread.join()
        check(url, clients)
        serve.shutdown()
    for kind, found in sorted(seconds.items()):
        print(
            f"{kind:<11}{len(found):>4} kills; acknowledged again after {median(found):.2f} s, at most {max(found):.2f}"
        )
    print(f"answers {dict(clients.answers)}; {database}, seed {seed}, {time.monotonic() - began:.0f} s")
    cluster.shutdown()
    if server:
        server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.events, arguments.database, arguments.seed)
