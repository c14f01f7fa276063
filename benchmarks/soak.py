"""Half an hour of lists, feedback, swaps and kills: does memory grow, do descriptors?

Run: PYTHONPATH=. python -m benchmarks.soak [--minutes 30] [--warm-up 6] [--rate 6] [--seed 0]

Requests leave at a fixed rate; each second list is answered by an event. Every 20 seconds two bundles change places,
every minute a replica is killed (SIGKILL). Autoscaling is off: another replica is a quarter of a gigabyte. Memory
(proportional set size) and descriptors are summed over Ray's and the service's processes every ten seconds; of each
minute the median counts, so that replacements on their way do not. Descriptors of Ray's log monitor are told apart: it
keeps the files of processes that ended until there are a thousand. Printed: all by minute, the slope after the warm-up
by least squares, and its 95 % interval; what each kind of process holds at first and at last. Exit status 1 where
memory surely grows by more than 1 MB a minute, descriptors by more than one, or under 99.9 % of requests are answered.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from ray import serve
from scipy.special import stdtrit

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.pipelines.session import session
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.store import OPEN, RolloutStore
from benchmarks.feedback_kills import title_of
from benchmarks.processes import pss_mb
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle

USERS = [f"u{n}" for n in range(200)]
SWAP_SECONDS, KILL_SECONDS, LOOK_SECONDS = 20.0, 60.0, 10.0
MOST_MB, MOST_DESCRIPTORS = 1.0, 1.0
LOG_MONITOR = "log monitor"


class Users:
    """Requests at a fixed rate, lists and events by turns."""

    def __init__(self, url: str, rate: float, seed: int) -> None:
        self._url, self._rate, self._rng = url, rate, random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.stopping = threading.Event()

    async def run(self) -> None:
        """Until told to stop."""
        began, tasks = time.monotonic(), set[asyncio.Task[None]]()
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            for count in itertools.count():
                if self.stopping.is_set():
                    break
                await asyncio.sleep(max(0.0, began + count / self._rate - time.monotonic()))
                task = asyncio.create_task(self._ask(client, count))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, client: httpx.AsyncClient, count: int) -> None:
        user_id = self._rng.choice(USERS)
        answer = await self._sent(client, "/v1/recommend", {"user_id": user_id})
        if answer and count % 2:
            item_id = self._rng.choice(answer["items"])["item_id"]
            told = {"event_id": f"e{count}", "user_id": user_id, "item_id": item_id, "event": "view"}
            await self._sent(client, "/v1/feedback", {"events": [{**told, "request_id": answer["request_id"]}]})

    async def _sent(
        self, client: httpx.AsyncClient, path: str, body: dict[str, object]
    ) -> dict[str, list[dict[str, str]]]:
        try:
            response = await client.post(path, json=body)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return {}
        self.statuses[str(response.status_code)] += 1
        return response.json() if response.status_code == 200 else {}


@dataclass(frozen=True)
class Look:
    """What all processes below this one hold at a moment."""

    minute: int
    memory_mb: float
    descriptors: Counter[str]
    """By kind of process."""

    @property
    def own(self) -> int:
        """Descriptors, without the log monitor's."""
        return sum(count for kind, count in self.descriptors.items() if kind != LOG_MONITOR)


class Watch:
    """Looks at memory and descriptors."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._began = time.monotonic()

    def look(self) -> None:
        """Now."""
        memory, descriptors = 0.0, Counter[str]()
        for process in psutil.Process().children(recursive=True):
            try:
                descriptors[kind_of(process)] += process.num_fds()
                memory += pss_mb(process.pid)
            except psutil.Error:
                continue  # it has just ended
        self.looks.append(Look(int((time.monotonic() - self._began) // 60), memory, descriptors))

    def by_minute(self, value: Callable[[Look], float]) -> dict[int, float]:
        """Of each minute the median."""
        groups = itertools.groupby(self.looks, key=lambda look: look.minute)
        return {minute: statistics.median(map(value, looks)) for minute, looks in groups}


def kind_of(process: psutil.Process) -> str:
    """What a process of Ray is."""
    title = title_of(process).strip()
    if title:  # "ray::ServeReplica:<application>:<deployment>", and while it works ".<method>" behind it
        return title.split(":")[-1].split(".")[0]
    words = " ".join(process.cmdline())
    return LOG_MONITOR if "log_monitor" in words else "gcs" if "gcs_server" in words else "raylet and agents"


def slope(minutes: list[float], values: list[float]) -> tuple[float, float]:
    """Least squares' slope a minute, and the half width of its 95 % interval."""
    x, y = np.array(minutes), np.array(values)
    centred = x - x.mean()
    steepness = float(centred @ y / (centred @ centred))
    left = y - y.mean() - steepness * centred
    error = float(np.sqrt(left @ left / (len(x) - 2) / (centred @ centred)))
    return steepness, float(stdtrit(len(x) - 2, 0.975)) * error


def disturb(
    rollouts: RolloutStore, bundles: list[Path], until: float, watch: Watch, rng: random.Random
) -> Counter[str]:
    """Swap, kill and look, each at its time."""
    done: Counter[str] = Counter()
    due = dict.fromkeys(("swap", "kill", "look"), time.monotonic())
    pace = {"swap": SWAP_SECONDS, "kill": KILL_SECONDS, "look": LOOK_SECONDS}
    last = 0
    while time.monotonic() < until:
        what = min(due, key=lambda name: due[name])
        time.sleep(max(0.0, due[what] - time.monotonic()))
        due[what] += pace[what]
        if what == "look":
            watch.look()
        elif what == "kill":
            found = [p for p in psutil.Process().children(recursive=True) if "ServeReplica" in title_of(p)]
            rng.choice(found).kill()
            done["kills"] += 1
        elif not last or rollouts.rollout(last).state not in OPEN:  # the one before has ended
            last = rollouts.ask("swap", str(bundles[(done["swaps"] + 1) % 2]))
            done["swaps"] += 1
    return done


def main(minutes: float, warm_up: float, rate: float, seed: int) -> None:
    """Serve, disturb, fit."""
    with tempfile.TemporaryDirectory() as name, session(ClusterConfig(num_cpus=8)):
        folder = Path(name)
        bundles = [build_tiny_bundle(folder / f"v-{n}", 60, seed=n) for n in range(2)]
        cfg = ServeConfig(
            bundle=str(bundles[0]), storage_path=str(folder), port=free_port(), gateway_replicas=2, deadline_ms=5000,
            max_matcher_replicas=1, max_reranker_replicas=1,
            rollout=RolloutConfig(follow_registry=False, min_agreement=0.0, num_probes=4),
        )  # fmt: skip
        users, watch = Users(start(cfg), rate, seed), Watch()
        rollouts = RolloutStore(cfg.feedback.store_url(cfg.storage_path))
        thread = threading.Thread(target=lambda: asyncio.run(users.run()))
        thread.start()
        done = disturb(rollouts, bundles, time.monotonic() + 60 * minutes, watch, random.Random(seed))
        users.stopping.set()
        thread.join()
        rollouts.close()
        serve.shutdown()
    tell(watch, warm_up, done, users.statuses)


def tell(watch: Watch, warm_up: float, done: Counter[str], statuses: Counter[str]) -> None:
    """Print, and exit with 1 where a promise was broken."""
    memory, own = watch.by_minute(lambda look: look.memory_mb), watch.by_minute(lambda look: look.own)
    logs = watch.by_minute(lambda look: look.descriptors[LOG_MONITOR])
    for minute in memory:
        print(
            f"minute {minute:>3} {memory[minute]:>7.0f} MB {own[minute]:>6.0f} descriptors, {logs[minute]:.0f} of logs"
        )
    warm = [minute for minute in memory if minute >= warm_up]
    minutes = [float(minute) for minute in warm]
    grows_mb, width_mb = slope(minutes, [memory[minute] for minute in warm])
    grows, width = slope(minutes, [own[minute] for minute in warm])
    for kind in sorted({kind for look in watch.looks for kind in look.descriptors}):
        held = watch.by_minute(lambda look, kind=kind: look.descriptors[kind])  # type: ignore[misc]
        print(f"{kind:<20} {held[warm[0]]:>5.0f} descriptors in minute {warm[0]}, {held[warm[-1]]:.0f} in {warm[-1]}")
    total = sum(statuses.values())
    answered = 1 - sum(n for status, n in statuses.items() if not status.startswith(("2", "4"))) / total
    print(
        f"{dict(done)}; memory {grows_mb:+.2f} +- {width_mb:.2f} MB a minute, descriptors {grows:+.2f} +- {width:.2f}; "
        f"{total} requests, {answered:.3%} answered, {dict(statuses)}"
    )
    if grows_mb - width_mb > MOST_MB or grows - width > MOST_DESCRIPTORS or answered < 0.999:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.minutes, given.warm_up, given.rate, given.seed)
