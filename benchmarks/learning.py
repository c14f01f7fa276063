"""Do recommendations follow when tastes shift? The champion of before against the bundle of `retrain`, by user.

A share of the kinds of people starts to like other things. Both models are asked about the newest choices, from the
same histories, which hold the new events too: what differs is what the models learned. Reported are NDCG at 10 of those
whose taste shifted and of the others, with the interval of the difference over users.

    python benchmarks/learning.py --storage /tmp/learning
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from avrec_ray.bundle import load_bundle
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.evaluation.significance import difference_interval
from avrec_ray.pipelines import retrain
from avrec_ray.pipelines.champion import FILE
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.gate import read_truth
from avrec_ray.pipelines.measured import rank_rows
from avrec_ray.pipelines.session import session
from benchmarks import world as w


def main(storage: Path, seeds: list[int], num_users: int, num_items: int, share: float) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        for name, numbers in measure(storage / f"seed{seed}", seed, num_users, num_items, share).items():
            before, after, low, high = numbers
            found.setdefault(name, []).append((after - before, low, high))
            print(
                f"seed {seed} {name:8} NDCG@10 champion {before:.4f}  retrained {after:.4f}  ratio "
                f"{after / before:.2f}  difference {after - before:+.4f} [{low:+.4f}, {high:+.4f}]",
                flush=True,
            )
    rises = all(low > 0 for _, low, _ in found["shifted"])
    keeps = all(high >= 0 for _, _, high in found["rest"])
    print(f"rises on shifted traffic beyond the interval: {rises}; does not fall on the rest: {keeps}")


def measure(storage: Path, seed: int, num_users: int, num_items: int, share: float) -> dict[str, tuple[float, ...]]:
    planted = w.plant(num_items, num_users, 20 * num_users, 40, seed)
    job = w.job_for(storage, seed)
    w.first_loop(planted, w.live(planted, 20 * num_users, 40, 0, "past", seed), job)
    later, changed = w.shifted(planted, share, seed + 100)
    w.post(job, w.live(later, 20 * num_users, 20, 40, "new", seed + 200))
    with open_loop(job, "retrain") as loop:
        outcome = retrain.run(loop, job)
    assert outcome is not None
    print(f"seed {seed} champion now: {outcome.passed}; drift warned about: {outcome.drifted}", flush=True)
    evaluation = storage / "retrain" / outcome.name / "evaluation"
    bundle = load_bundle(outcome.bundle)
    truth = read_truth(evaluation / "truth.parquet", bundle)
    lists = [pq.read_table(evaluation / name) for name in (FILE, "recommendations.parquet")]
    ndcg = [ndcg_at_k(rank_rows(table, truth.users, bundle), truth.targets, 10) for table in lists]
    is_shifted = np.isin(truth.users, np.array(planted.users.user_ids)[changed])
    result = {}
    for name, rows in (("shifted", is_shifted), ("rest", ~is_shifted)):
        interval = difference_interval(ndcg[1][rows], ndcg[0][rows], np.random.default_rng(seed))
        result[name] = (float(ndcg[0][rows].mean()), float(ndcg[1][rows].mean()), *interval)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.5, help="of the kinds of people whose taste shifts")
    arguments = parser.parse_args()
    job_cluster = w.job_for(arguments.storage, 0).cluster
    with session(job_cluster):
        main(arguments.storage, arguments.seeds, arguments.users, arguments.items, arguments.share)
