"""A surge takes the matcher from one replica to three and back: replicas, requests at work and latency over time.

Run: PYTHONPATH=. python -m benchmarks.autoscaling [--surge 60] [--downscale 60] [--plot autoscaling.png]

Before and after the surge there is one client, during it many, each asking without a pause. Printed and plotted:
replicas that run, by second. Exit status 1 unless three ran during the surge, one runs at the end, no request failed,
and the number of replicas rose and fell once only.
"""

import argparse
import itertools
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import matplotlib as mpl
from ray import serve

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.session import session
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.types import Event
from serve_apps.config import ServeConfig
from serve_apps.models_app import PREFIX
from serve_apps.run import start
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

USERS = [f"u{n}" for n in range(50)]
MOST = 3


class Clients:
    """As many as are wanted by now, each asking without a pause."""

    def __init__(self, url: str) -> None:
        self._url, self.wanted, self.statuses = url, 0, Counter[int]()
        self.seconds: list[tuple[float, float]] = []
        self.stopping = threading.Event()

    def run(self, number: int) -> None:
        """One client; it rests while it is not wanted."""
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for turn in range(10**9):
                if self.stopping.is_set():
                    return
                if number >= self.wanted:
                    time.sleep(0.1)
                    continue
                began = time.monotonic()
                body = {"user_id": USERS[(number * 7 + turn) % len(USERS)], "k": 10}
                self.statuses[client.post("/v1/recommend", json=body).status_code] += 1
                self.seconds.append((began, time.monotonic() - began))


def running_matchers() -> int:
    """Replicas of the matcher whose process is past its start."""
    for name, app in serve.status().applications.items():
        if name.startswith(PREFIX):
            return app.deployments["matcher"].replica_states.get("RUNNING", 0)
    return 0


def main(surge_seconds: float, downscale_seconds: float, clients: int, plot: Path) -> None:
    """Serve, surge, look."""
    with tempfile.TemporaryDirectory() as name, session(ClusterConfig(num_cpus=10)):
        folder = Path(name)
        # A user tower that reads much: it is the matcher whose replicas are too few, not gateway or reranker.
        towers = replace(tiny_towers(), model_dim=128, user_layers=4, history_length=500)
        bundle = build_tiny_bundle(folder / "v-surge", 5000, towers=towers, random_vectors=True)
        store = EventStore(f"sqlite:///{folder / 'events.db'}")
        liked = [
            Event(u, f"i{(n * 97 + k) % 5000}", "like", 1e9 + k, event_id=f"{u}-{k}")
            for n, u in enumerate(USERS)
            for k in range(500)
        ]
        store.append(liked, 2e9)
        store.close()
        cfg = ServeConfig(
            bundle=str(bundle), storage_path=str(folder), port=free_port(), max_matcher_replicas=MOST,
            max_reranker_replicas=MOST, deadline_ms=30_000, matcher=MatcherConfig(num_candidates=50),
            matcher_ongoing_requests=3.0, upscale_seconds=5.0, downscale_seconds=downscale_seconds,
            rollout=RolloutConfig(follow_registry=False),
        )  # fmt: skip
        load = Clients(start(cfg))
        threads = [threading.Thread(target=load.run, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        began, seen, load.wanted = time.monotonic(), list[tuple[float, int, int]](), 1
        phases = ((15.0, 1), (surge_seconds, clients), (downscale_seconds + 90.0, 1))
        for seconds, wanted in phases:
            load.wanted, until = wanted, time.monotonic() + seconds
            while time.monotonic() < until:
                seen.append((time.monotonic() - began, running_matchers(), wanted))
                if wanted == 1 and seconds > 15 and seen[-1][1] == 1:
                    break
                time.sleep(1.0)
        load.stopping.set()
        for thread in threads:
            thread.join()
        serve.shutdown()
    tell(seen, load, began, plot)


def tell(seen: list[tuple[float, int, int]], load: Clients, began: float, plot: Path) -> None:
    """Print the changes, draw them, and judge."""
    changes = [(at, count) for n, (at, count, _) in enumerate(seen) if not n or count != seen[n - 1][1]]
    print("replicas that run: " + ", ".join(f"{count} at {at:.0f} s" for at, count in changes))
    print(f"answers {dict(load.statuses)}")
    draw(seen, [(at - began, seconds) for at, seconds in load.seconds], plot)
    steps = [after - before for (_, before), (_, after) in itertools.pairwise(changes)]
    turns = sum((a > 0) != (b > 0) for a, b in itertools.pairwise(steps))
    most, last = max(count for _, count in changes), changes[-1][1]
    if most != MOST or last != 1 or turns != 1 or set(load.statuses) != {200}:
        raise SystemExit(1)


def draw(seen: list[tuple[float, int, int]], seconds: list[tuple[float, float]], plot: Path) -> None:
    """Clients, replicas, latency, one below the other."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (clients, replicas, latency) = plt.subplots(3, 1, sharex=True, figsize=(9, 6))
    at = [row[0] for row in seen]
    clients.step(at, [row[2] for row in seen], where="post", color="tab:orange")
    clients.set(ylabel="clients")
    replicas.step(at, [row[1] for row in seen], where="post")
    replicas.set(ylabel="matcher replicas", yticks=range(MOST + 1))
    latency.plot([s[0] for s in seconds], [s[1] * 1000 for s in seconds], ".", markersize=2)
    latency.set(xlabel="seconds", ylabel="ms a request", yscale="log")
    figure.tight_layout()
    figure.savefig(plot, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surge", type=float, default=60.0)
    parser.add_argument("--downscale", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--plot", type=Path, default=Path("autoscaling.png"))
    given = parser.parse_args()
    main(given.surge, given.downscale, given.clients, given.plot)
