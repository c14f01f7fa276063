"""Candidates that are slow, that err, whose vectors changed places: each must be taken back by itself; an equal stays.

Run: PYTHONPATH=. python -m benchmarks.canary STORAGE [--clients 4] [--seed 0]

STORAGE is that of a finished loop; its newest bundle is served, and candidates are copies of it under other names.
Slow: its processes are stopped (SIGSTOP) half of the time. Errs: its reranker is killed (SIGKILL) over and over.
Shuffled: the vectors of its items are permuted and its index is built over them; once it is asked for as any candidate,
once it is put into the lineup past the checks. Equal: an A/A test, with likes by a fixed chance an item. Printed for
each: what became of it, after how many of its lists, and how many lists came and were degraded meanwhile. Exit status 1
where an ill one stays, the equal one goes, or a list does not come.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
from ray import serve

from avrec_ray.bundle import load_bundle, load_metadata
from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.session import session
from avrec_ray.retrieval.index import build_index
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.lineup import Arm
from avrec_ray.rollout.outcome import outcome_of
from avrec_ray.rollout.store import OPEN, RolloutStore
from benchmarks.feedback_kills import title_of
from serve_apps.config import ServeConfig
from serve_apps.models_app import app_name
from serve_apps.run import start
from tests.serve_apps.conftest import free_port

LIKES = 0.03
"""Chance that an item of a list is liked."""


def copied(bundle: Path, folder: Path, name: str, seed: int | None = None) -> Path:
    """The bundle under another model_version; with a seed, its items' vectors change places."""
    target = folder / name
    shutil.copytree(bundle, target)
    values = json.loads((target / "metadata.json").read_text())
    values["model_version"] = name
    if seed is not None:
        opened = load_bundle(bundle)
        order = np.random.default_rng(seed).permutation(len(opened.items))
        table = pq.read_table(target / "embeddings.parquet")
        moved = table.set_column(table.column_names.index("embedding"), "embedding", table["embedding"].take(order))
        pq.write_table(moved.replace_schema_metadata(table.schema.metadata), target / "embeddings.parquet")
        shutil.rmtree(target / "index")
        (target / "index").mkdir()
        metadata = load_metadata(bundle)
        build_index(opened.embeddings[order], metadata.index).save(target / "index", metadata.towers_version)
        for path in [target / "embeddings.parquet", *sorted((target / "index").rglob("*"))]:
            values["files"][str(path.relative_to(target))] = hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "metadata.json").write_text(json.dumps(values))
    return target


class Users:
    """Clients that ask for lists without a pause, and like an item of each with a fixed chance."""

    def __init__(self, url: str, user_ids: list[str], num_clients: int, seed: int) -> None:
        self.url, self.user_ids, self._num, self._seed = url, user_ids, num_clients, seed
        self.lists: Counter[str] = Counter()
        self.failed = 0

    @contextmanager
    def asking(self) -> Iterator["Users"]:
        """While the block lasts."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(n, stop)) for n in range(self._num)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, number: int, stop: threading.Event) -> None:
        rng = random.Random(f"{self._seed}-{number}")
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not stop.is_set():
                user_id = rng.choice(self.user_ids)
                response = client.post("/v1/recommend", json={"user_id": user_id})
                if response.status_code != 200:
                    self.failed += 1
                    continue
                answer = response.json()
                self.lists[answer["variant"]] += 1
                self.lists["degraded"] += bool(set(answer["degraded"]) - {"unknown_user"})
                liked = [item["item_id"] for item in answer["items"] if rng.random() < LIKES]
                if liked:
                    about = {"user_id": user_id, "event": "like", "request_id": answer["request_id"]}
                    events = [{**about, "event_id": rng.randbytes(8).hex(), "item_id": item_id} for item_id in liked]
                    client.post("/v1/feedback", json={"events": events})


def processes(version: str, *deployments: str) -> list[psutil.Process]:
    """Replicas of a bundle's application."""
    found = [(p, title_of(p)) for p in psutil.Process().children(recursive=True)]
    return [p for p, title in found if version in title and any(name in title for name in deployments)]


def stopped_half_of_the_time(version: str, over: threading.Event) -> None:
    """SIGSTOP and SIGCONT by turns."""
    while not over.is_set():
        for sign, seconds in ((signal.SIGSTOP, 0.3), (signal.SIGCONT, 0.3)):
            for process in processes(version, "matcher"):
                os.kill(process.pid, sign)
            time.sleep(seconds)


def killed_over_and_over(version: str, over: threading.Event) -> None:
    """SIGKILL as soon as there is something to kill."""
    while not over.is_set():
        for process in processes(version, "reranker"):
            process.kill()
        time.sleep(0.2)


def wait_until(is_true: Callable[[], bool], seconds: float = 240) -> bool:
    """Poll; false where it did not become true."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Trial:
    """Candidates on one running service."""

    def __init__(self, url: str, cfg: ServeConfig, users: Users) -> None:
        self.url, self.cfg, self.users = url, cfg, users
        self.rollouts = RolloutStore(cfg.feedback.store_url(cfg.storage_path))
        self.well = True

    def ill(self, bundle: Path, harm: Callable[[str, threading.Event], None] | None) -> None:
        """A canary for half of the users, and what becomes of it."""
        seq = self.rollouts.ask("canary", str(bundle), share=0.5, seconds=600)
        wait_until(lambda: self.rollouts.rollout(seq).state not in OPEN[:3])
        over = threading.Event()
        if harm is not None and self.rollouts.rollout(seq).state == "running":
            before = self.users.lists["candidate"]
            wait_until(lambda: self.users.lists["candidate"] > before)
            threading.Thread(target=harm, args=(bundle.name, over), daemon=True).start()
        began = time.monotonic()
        with self.counted() as lists:
            ended = wait_until(lambda: self.rollouts.rollout(seq).state not in OPEN, 120)
        over.set()
        rollout = self.rollouts.rollout(seq)
        self.tell(bundle.name, f"{rollout.state} after {time.monotonic() - began:.1f} s: {rollout.detail}", lists)
        self.well &= ended and rollout.state in ("taken_back", "refused")

    def smuggled(self, bundle: Path) -> None:
        """A candidate that nobody checked."""
        now = self.rollouts.current()
        assert now is not None
        arm = Arm(model_version=bundle.name, bundle=str(bundle), app=app_name(self.cfg, bundle.name))
        self.rollouts.append(now.lineup.challenged(arm, "canary", 0.5, "past the checks"), now.revision)
        began = time.monotonic()

        def gone() -> bool:
            found = self.rollouts.current()
            return found is not None and found.lineup.candidate is None

        with self.counted() as lists:
            ended = wait_until(gone)
        found = self.rollouts.current()
        assert found is not None
        said = f"taken back after {time.monotonic() - began:.1f} s: {found.lineup.reason}" if ended else "stayed"
        self.tell(f"{bundle.name}, unchecked", said, lists)
        self.well &= ended

    def equal(self, bundle: Path, seconds: float) -> None:
        """An A/A test."""
        seq = self.rollouts.ask("ab", str(bundle), share=0.5)
        wait_until(lambda: self.rollouts.rollout(seq).state not in OPEN[:3])
        since = time.time()
        with self.counted() as lists:
            time.sleep(seconds)
        stays = self.rollouts.rollout(seq).state == "running"
        events = EventStore(self.cfg.feedback.store_url(self.cfg.storage_path))
        shown, answered = events.export_impressions()[0], events.export_joined()[0]
        events.close()
        now = self.rollouts.current()
        assert now is not None
        found = outcome_of(shown, answered, (now.lineup.champion.model_version, bundle.name), since)
        self.tell(bundle.name, f"{'stayed' if stays else 'went'} {seconds:.0f} s; {found}", lists)
        self.well &= stays and found.low <= 0 <= found.high

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Lists of the block."""
        lists, before = Counter[str](), Counter(self.users.lists)
        yield lists
        lists.update(self.users.lists - before)

    def tell(self, name: str, said: str, lists: Counter[str]) -> None:
        """One line."""
        print(f"{name:<22}{said}; lists {dict(lists)}, without an answer so far {self.users.failed}", flush=True)


def main(storage: Path, num_clients: int, aa_seconds: float, seed: int) -> None:
    """Serve, harm, look."""
    newest = max((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime)
    with tempfile.TemporaryDirectory() as name, session(ClusterConfig(num_cpus=8)):
        folder = Path(name)
        shutil.copy(storage / "events.db", folder / "events.db")
        bundles = {n: copied(newest, folder, n) for n in ("c-slow", "c-errs", "c-equal")}
        bundles["c-shuffled"] = copied(newest, folder, "c-shuffled", seed)
        cfg = ServeConfig(
            bundle=str(newest), storage_path=str(folder), port=free_port(), max_matcher_replicas=1,
            max_reranker_replicas=1, rollout=RolloutConfig(follow_registry=False, linger_seconds=5.0),
        )  # fmt: skip
        events = EventStore(cfg.feedback.store_url(cfg.storage_path))
        user_ids = events.recent_users(400)
        events.close()
        users = Users(start(cfg), user_ids, num_clients, seed)
        trial = Trial(users.url, cfg, users)
        with users.asking():
            trial.ill(bundles["c-slow"], stopped_half_of_the_time)
            trial.ill(bundles["c-errs"], killed_over_and_over)
            trial.ill(bundles["c-shuffled"], None)
            trial.smuggled(bundles["c-shuffled"])
            trial.equal(bundles["c-equal"], aa_seconds)
        trial.rollouts.close()
        serve.shutdown()
    if users.failed or not trial.well:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--aa-seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.storage.resolve(), given.clients, given.aa_seconds, given.seed)
