"""Lists over HTTP while replicas, the controller and nodes die (SIGKILL), the service is deployed anew, bundles swap.

Run: PYTHONPATH=. python -m benchmarks.serve_faults [--rate 8] [--kills 10] [--swaps 100] [--fresh 8] [--seed 0]

A cluster of three nodes on this machine; requests leave at a fixed rate whatever became of those before, and their time
counts from when they should have left. Each bundle's list for each user is computed beforehand in this process: an
answer that is not the list of the bundle it names, unless it is marked degraded, is a mixture. After each kill it waits
until all replicas run again. Swaps go to and fro between two bundles whose replicas run; --fresh of them bring one
whose replicas must start first. Printed for each phase: requests, share without 5xx or a broken connection, mixtures,
degraded, p50 and slowest. Exit status 1 below 99.9 %, at a mixture, or where the slowest is more than --added seconds
above the calm median.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from ray import serve

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.session import session
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.store import OPEN, RolloutStore
from avrec_ray.types import Event, Query
from benchmarks.feedback_kills import Killer, head_node
from serve_apps.config import ServeConfig
from serve_apps.gateway import build_app
from serve_apps.run import APP_NAME, start
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle

USERS = [f"u{n}" for n in range(20)]
MATCHER, POLICY = MatcherConfig(num_candidates=20, num_fresh=0), PolicyConfig(fresh_share=0.0)
LEAST_ANSWERED = 0.999
SEEN_SECONDS = 4.0
"""Serve asks replicas whether they live every two seconds: sooner it still takes a dead one for alive."""


@dataclass
class Phase:
    """What clients got while something happened."""

    name: str
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    mixtures: int = 0

    @property
    def answered(self) -> float:
        """Share without a 5xx and without a broken connection."""
        failed = sum(count for status, count in self.statuses.items() if not status.startswith(("2", "4")))
        return 1 - failed / max(1, sum(self.statuses.values()))

    def row(self) -> str:
        """For the table."""
        ordered = sorted(self.seconds)
        middle, slowest = ordered[len(ordered) // 2], ordered[-1]
        slow = ordered[int(0.99 * (len(ordered) - 1))]
        marked = ", ".join(f"{reason} {count}" for reason, count in self.degraded.most_common(3)) or "none"
        return (
            f"{self.name:<20}{len(ordered):>6} requests, {self.answered:.3%} answered, {self.mixtures} mixed, "
            f"p50 {middle * 1000:.0f} p99 {slow * 1000:.0f} slowest {slowest * 1000:.0f} ms; degraded: {marked}; "
            f"{dict(self.statuses)}"
        )


class Load:
    """Requests at a fixed rate, from a thread of their own."""

    def __init__(self, url: str, rate: float, expected: dict[tuple[str, str], list[str]]) -> None:
        self.phase = Phase("start")
        self._url, self._rate, self._expected = url, rate, expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """While the block lasts."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    async def _run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # a connection each: no proxy's death outlives it
        began, count, tasks = time.monotonic(), 0, set()
        async with httpx.AsyncClient(base_url=self._url, timeout=30, limits=limits) as client:
            while not self._stop.is_set():
                due = began + count / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._ask(client, USERS[count % len(USERS)], due, self.phase))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                count += 1
            await asyncio.gather(*tasks)

    async def _ask(self, client: httpx.AsyncClient, user_id: str, due: float, phase: Phase) -> None:
        try:
            response = await client.post("/v1/recommend", json={"user_id": user_id})
            phase.statuses[str(response.status_code)] += 1
        except httpx.HTTPError as error:
            phase.statuses[type(error).__name__] += 1
            return
        finally:
            phase.seconds.append(time.monotonic() - due)
        if response.status_code != 200:
            return
        answer = response.json()
        phase.degraded.update(answer["degraded"])
        listed = [item["item_id"] for item in answer["items"]]
        phase.mixtures += not answer["degraded"] and listed != self._expected[user_id, answer["model_version"]]


def lists_of(bundles: list[Path], store: EventStore) -> dict[tuple[str, str], list[str]]:
    """The list of each user from each bundle, computed here."""
    found = {}
    for bundle in bundles:
        matcher, reranker = Matcher(bundle, MATCHER), Reranker(bundle, POLICY)
        for user_id in USERS:
            (items,) = recommend(matcher, reranker, [Query(user_id, store.history(user_id, 1000), k=10)])
            found[user_id, bundle.name] = [item.item_id for item in items]
    return found


def swaps(rollouts: RolloutStore, bundles: list[Path], num_swaps: int, num_fresh: int) -> str:
    """Bring one bundle after another; every so often one whose replicas do not run yet."""
    began, fresh = time.monotonic(), iter(bundles[2:])
    pair = [bundles[0], bundles[1]]
    every = max(1, num_swaps // max(1, num_fresh))
    for n in range(num_swaps):
        if n % every == every - 1 and (new := next(fresh, None)) is not None:
            pair = [pair[(n + 1) % 2], new] if n % 2 == 0 else [new, pair[(n + 1) % 2]]
        seq = rollouts.ask("swap", str(pair[(n + 1) % 2]))
        wait_until(lambda seq=seq: rollouts.rollout(seq).state not in OPEN, 300)  # type: ignore[misc]
        done = rollouts.rollout(seq)
        if done.state != "done":
            raise SystemExit(f"swap {n} was {done.state}: {done.detail}")
    return f"{num_swaps} swaps in {time.monotonic() - began:.0f} s"


def wait_until(is_true: Callable[[], bool], seconds: float) -> None:
    """Poll, with an end."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s in vain")
        time.sleep(0.05)


def all_run() -> bool:
    """Whether every deployment has its replicas again: what is tried is one death at a time."""
    try:
        return all(app.status == "RUNNING" for app in serve.status().applications.values())
    except Exception:  # the controller is not back yet
        return False


def whole(url: str) -> bool:
    """Whether a list comes that lacks nothing."""
    try:
        return bool(httpx.post(f"{url}/v1/recommend", json={"user_id": "u1"}, timeout=10).json()["degraded"] == [])
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def main(
    rate: float, num_kills: int, num_swaps: int, num_fresh: int, added_seconds: float, seed: int, only: list[str]
) -> None:
    """Serve, ask, break, look."""
    cluster = head_node()
    with tempfile.TemporaryDirectory() as folder, session(ClusterConfig(address=cluster.address)):
        killer = Killer(cluster, None, seed)
        names = [f"v-{n}" for n in range(2 + num_fresh)]
        bundles = [build_tiny_bundle(Path(folder) / name, 60, seed=n, head_std=0.1) for n, name in enumerate(names)]
        store = EventStore(f"sqlite:///{Path(folder) / 'events.db'}")
        rng = random.Random(seed)
        liked = [
            Event(user, f"i{rng.randrange(60)}", "like", 1e9 + n, event_id=f"{user}-{n}")
            for user in USERS
            for n in range(5)
        ]
        store.append(liked, 2e9)
        expected = lists_of(bundles, store)
        cfg = ServeConfig(
            bundle=str(bundles[0]), storage_path=folder, port=free_port(), matcher=MATCHER, policy=POLICY,
            gateway_replicas=2, max_matcher_replicas=2, max_reranker_replicas=2, deadline_ms=1000,
            # Bundles of random weights agree in nothing: what is tried here is the swap, not the judgement.
            rollout=RolloutConfig(follow_registry=False, min_agreement=0.0, num_probes=1, linger_seconds=5.0),
        )  # fmt: skip
        url = start(cfg)
        rollouts = RolloutStore(cfg.feedback.store_url(cfg.storage_path))
        phases: list[Phase] = []

        def broken(kind: str) -> Callable[[], str]:
            def kill() -> str:
                for _ in range(num_kills):
                    time.sleep(rng.uniform(0, 1))
                    killer.kill_one(kind)
                    time.sleep(SEEN_SECONDS)
                    wait_until(lambda: all_run() and whole(url), 120)
                return f"{num_kills} kills"

            return kill

        def deployed_anew() -> str:
            serve.run(build_app(to_dict(cfg)), name=APP_NAME, route_prefix="/")
            return "once"

        trials: list[tuple[str, Callable[[], str]]] = [
            ("calm", lambda: time.sleep(20) or "20 s"),
            *((f"{kind} killed", broken(kind)) for kind in ("gateway", "matcher", "reranker", "controller", "node")),
            ("rolling update", deployed_anew),
            ("swaps", lambda: swaps(rollouts, bundles, num_swaps, num_fresh)),
        ]
        with Load(url, rate, expected).running() as load:
            for name, trial in (t for t in trials if t[0] == "calm" or not only or t[0] in only):
                load.phase = phase = Phase(name)
                told = trial()
                time.sleep(3.0)  # what is under way belongs to this phase
                load.phase = Phase("between")
                wait_until(lambda: whole(url), 120)
                phases.append(phase)
                print(phase.row(), told, flush=True)
        judge(phases, added_seconds)
        rollouts.close()
        store.close()
        serve.shutdown()
    cluster.shutdown()


def judge(phases: list[Phase], added_seconds: float) -> None:
    """Print the sum, and exit with 1 where a promise was broken."""
    calm = sorted(phases[0].seconds)[len(phases[0].seconds) // 2]
    total = Phase("all", [s for p in phases for s in p.seconds], mixtures=sum(p.mixtures for p in phases))
    for phase in phases:
        total.statuses.update(phase.statuses)
        total.degraded.update(phase.degraded)
    print(total.row())
    slowest = max(total.seconds) - calm
    print(f"slowest {slowest:.2f} s above the calm median")
    if total.answered < LEAST_ANSWERED or total.mixtures or slowest > added_seconds:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second")
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--fresh", type=int, default=8, help="swaps to a bundle whose replicas do not run yet")
    parser.add_argument("--added", type=float, default=2.0, help="seconds above the calm median")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="phases, such as 'gateway killed' or swaps")
    given = parser.parse_args()
    main(given.rate, given.kills, given.swaps, given.fresh, given.added, given.seed, given.only)
