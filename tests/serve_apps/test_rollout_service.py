"""Bundles that follow one another in the running service, on Ray Serve, while users ask all the time."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.store import Rollout, RolloutStore
from avrec_ray.types import Event
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.serve_apps.conftest import free_port, small_catalogue
from tests.serve_apps.test_service import descendants, wait_until
from tests.tiny_bundle import build_tiny_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

USERS = [f"u{n}" for n in range(40)]


@dataclass
class Traffic:
    """What clients got meanwhile."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0


@dataclass
class Running:
    """The service, its record of rollouts, and the bundles that may serve."""

    url: str
    rollouts: RolloutStore
    bundles: dict[str, Path]

    def ended(self, seq: int, *states: str) -> Rollout:
        wait_until(lambda: self.rollouts.rollout(seq).state in states, 120)
        return self.rollouts.rollout(seq)

    def version(self, user_id: str = "u1") -> str:
        response = httpx.post(f"{self.url}/v1/recommend", json={"user_id": user_id}, timeout=30)
        return str(response.json()["model_version"])

    @contextmanager
    def under_traffic(self, num_clients: int = 2) -> Iterator[Traffic]:
        """Clients that ask without a pause, until the block ends."""
        traffic, stop, lock = Traffic(), threading.Event(), threading.Lock()

        def ask(number: int) -> None:
            with httpx.Client(base_url=self.url, timeout=30) as client:
                for turn in range(10**9):
                    if stop.is_set():
                        return
                    started = time.monotonic()
                    user_id = USERS[(number + turn) % len(USERS)]
                    response = client.post("/v1/recommend", json={"user_id": user_id, "deadline_ms": 1500})
                    with lock:
                        traffic.slowest_seconds = max(traffic.slowest_seconds, time.monotonic() - started)
                        traffic.statuses[response.status_code] += 1
                        if response.status_code == 200:
                            answer = response.json()
                            traffic.versions[answer["model_version"]] += 1
                            traffic.degraded.update(answer["degraded"])

        clients = [threading.Thread(target=ask, args=(number * 7,)) for number in range(num_clients)]
        for client in clients:
            client.start()
        try:
            yield traffic
        finally:
            stop.set()
            for client in clients:
                client.join()


@pytest.fixture(scope="module")
def running(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from ray import serve

    folder = tmp_path_factory.mktemp("rollout")
    bundles = {
        name: build_tiny_bundle(folder / name, catalogue=small_catalogue(), head_std=1.0) for name in ("v-a", "v-b")
    }
    store = EventStore(f"sqlite:///{folder / 'events.db'}")
    store.append([Event(u, f"i{n % 30}", "like", 1e9 + n, event_id=u) for n, u in enumerate(USERS)], 2e9)
    store.close()
    cfg = ServeConfig(
        bundle=str(bundles["v-a"]),
        storage_path=str(folder),
        port=free_port(),
        matcher=MatcherConfig(num_candidates=20, num_fresh=0),
        policy=PolicyConfig(fresh_share=0.0),
        max_matcher_replicas=1,
        max_reranker_replicas=1,
        deadline_ms=5000,
        rollout=RolloutConfig(follow_registry=False, num_probes=8, guard_requests=10, linger_seconds=3.0),
    )
    url = start(cfg)
    rollouts = RolloutStore(cfg.feedback.store_url(cfg.storage_path))
    yield Running(url, rollouts, bundles)
    rollouts.close()
    serve.shutdown()


def test_swap_and_rollback_under_traffic_lose_and_mix_nothing(running: Running) -> None:
    with running.under_traffic() as traffic:
        done = running.ended(running.rollouts.ask("swap", str(running.bundles["v-b"])), "done", "failed", "refused")
        assert done.state == "done", done.detail
        wait_until(lambda: running.version() == "v-b")
        started = time.monotonic()
        running.rollouts.ask("rollback")
        wait_until(lambda: running.version() == "v-a")
        assert time.monotonic() - started < 10
    assert set(traffic.statuses) == {200}
    assert set(traffic.versions) == {"v-a", "v-b"}
    assert "mixed_model" not in traffic.degraded


def test_canary_whose_models_hang_is_taken_back_and_every_user_has_a_list(running: Running) -> None:
    seq = running.rollouts.ask("canary", str(running.bundles["v-b"]), share=0.5, seconds=600)
    running.ended(seq, "running", "failed", "refused")
    wait_until(lambda: len({running.version(user) for user in USERS}) == 2)
    hung = [pid for pid, title in descendants(os.getpid()).items() if "models-v-b" in title and "matcher" in title]
    assert hung
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    try:
        with running.under_traffic(num_clients=4) as traffic:
            taken_back = running.ended(seq, "taken_back", "done", "stopped")
    finally:
        for pid in hung:
            os.kill(pid, signal.SIGCONT)
    assert taken_back.state == "taken_back"
    assert "requests failed" in taken_back.detail
    assert set(traffic.statuses) == {200}
    assert {running.version(user) for user in USERS} == {"v-a"}
