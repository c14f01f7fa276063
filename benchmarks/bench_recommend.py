"""Batch recommendation by Ray Data against two plain processes that call the same class on the same shards.

Run: PYTHONPATH=. python benchmarks/bench_recommend.py [users]. A synthetic bundle of 10,000 items, 20 events a user,
settings as in conf/base.yaml. Each line: users a second with and without start-up, the ratio to plain (above 1:
faster), and the peak memory of all processes together. Start-up ends with the first part on disk.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines.recommend import compute
from avrec_ray.pipelines.recommend_inputs import Wanted, wanted_lists
from avrec_ray.pipelines.recommend_parts import Parts, open_parts
from avrec_ray.pipelines.recommend_users import RecommendUsers
from avrec_ray.pipelines.session import session
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.towers.config import TowersConfig
from tests.tiny_bundle import build_tiny_bundle

NUM_ITEMS, NUM_EVENTS, K, NUM_WORKERS = 10_000, 20, 20, 2


def main(num_users: int) -> None:
    """Both variants in processes of their own, plain before and after Ray: other work on the machine shows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, num_users)
        results = [(variant, measure(variant, folder, num_users)) for variant in ("plain", "ray", "plain")]
    baseline = {key: np.mean([r[key] for v, r in results if v == "plain"]) for key in ("rate", "warm_rate")}
    for variant, result in results:
        ratios = [result[key] / baseline[key] for key in ("rate", "warm_rate")]
        print(
            f"{num_users:>7} users  {variant:<5}  {result['seconds']:6.1f} s  {result['rate']:6.0f} users/s "
            f"({ratios[0]:.2f}x)  without start-up {result['warm_rate']:6.0f} users/s ({ratios[1]:.2f}x)  "
            f"peak {result['peak_mb']:5.0f} MB"
        )


def measure(variant: str, folder: Path, num_users: int) -> dict[str, float]:
    """Run one variant; rates in users a second."""
    for path in folder.glob("parts/*/part-*"):
        path.unlink()
    began = time.time()
    child = subprocess.Popen([sys.executable, __file__, variant, str(folder)], stdout=subprocess.PIPE, text=True)
    peak_mb = [0.0]
    watcher = threading.Thread(target=watch_memory, args=(child.pid, peak_mb), daemon=True)
    watcher.start()
    told, _ = child.communicate()
    if child.returncode:
        raise SystemExit(child.returncode)
    times = sorted(path.stat().st_mtime for path in folder.glob("parts/*/part-*.parquet"))
    after_first = num_users - num_users / len(times)
    seconds = times[-1] - began
    return {
        "seconds": seconds,
        "rate": num_users / seconds,
        "warm_rate": after_first / (times[-1] - times[0]),
        "peak_mb": peak_mb[0],
        **json.loads(told.splitlines()[-1]),
    }


def watch_memory(pid: int, peak_mb: list[float]) -> None:
    """Keep the largest memory of a process and its descendants, from Linux's /proc."""
    while Path(f"/proc/{pid}").exists():
        peak_mb[0] = max(peak_mb[0], sum(map(memory_mb, family(pid))))
        time.sleep(10)


def family(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = {pid}, {pid}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def memory_mb(pid: int) -> float:
    """Proportional set size: a page shared by n processes counts 1 / n."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    return 0.0


def run_ray(parts: Parts, wanted: Wanted) -> None:
    """As jobs.recommend does."""
    with session(ClusterConfig(num_workers=NUM_WORKERS)):
        compute(parts, wanted, NUM_WORKERS, lambda line: print(line, file=sys.stderr))


def run_plain(parts: Parts, wanted: Wanted) -> None:
    """A pool that hands out one shard at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = (str(wanted.bundle), str(parts.folder), to_dict(wanted.matcher), to_dict(wanted.policy), wanted.k)
    with multiprocessing.get_context("spawn").Pool(NUM_WORKERS, load, arguments) as pool:
        for _ in pool.imap_unordered(write_part, parts.missing()):
            pass


def load(*arguments: object) -> None:
    """Once a process."""
    global recommender
    recommender = RecommendUsers(*arguments)  # type: ignore[arg-type]


def write_part(shard: int) -> None:
    """One shard in a process of the pool."""
    recommender({"shard": np.array([shard])})


def write_inputs(folder: Path, num_users: int) -> None:
    """The bundle, and events in no order."""
    users = [f"u{user:07d}" for user in range(num_users)]
    towers = TowersConfig(dropout=0.0)
    build_tiny_bundle(
        folder / "bundle", NUM_ITEMS, 0, towers, RerankerConfig(), head_std=0.1, num_users=20_000, num_choices=400_000
    )
    rng = np.random.default_rng(0)
    total = num_users * NUM_EVENTS
    items = np.array([f"i{row:02d}" for row in range(NUM_ITEMS)])
    columns = {
        "user_id": pa.array(users).take(pa.array(rng.integers(0, num_users, total))),
        "item_id": pa.array(items[rng.integers(0, NUM_ITEMS, total)]),
        "event": pa.array(np.array(["view", "like", "skip"])[rng.integers(0, 3, total)]),
        "at": pa.array(rng.integers(0, 10**15, total), pa.timestamp("us", tz="UTC")),
        "watch_seconds": pa.array(rng.uniform(0, 60, total).astype(np.float32)),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    (folder / "users.json").write_text(json.dumps(users))


def child(variant: str, folder: Path) -> None:
    """What `measure` starts; the last line says how long the driver prepared."""
    job = JobConfig(matcher=MatcherConfig(num_fresh=10), policy=PolicyConfig(fresh_share=0.1))
    began = time.time()
    users = json.loads((folder / "users.json").read_text())
    wanted = wanted_lists(folder / "bundle", [folder / "interactions.parquet"], users, job, K, None)
    parts = open_parts(folder / "parts", wanted, lambda line: print(line, file=sys.stderr))
    prepared = time.time() - began
    {"ray": run_ray, "plain": run_plain}[variant](parts, wanted)
    print(json.dumps({"prepare_seconds": prepared}))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
