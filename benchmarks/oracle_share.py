"""How near the served lists of a synthetic world come to someone who knows what was planted, in old items and in new.

Run: PYTHONPATH=. python -m benchmarks.oracle_share STORAGE [STORAGE ...] [--cutoff 10]

Each STORAGE is the folder of a finished full loop over synthetic data; several are seeds. The lists are those that
its evaluation left; the oracle's are made here, by taste and popularity as drawn. Both are ranked whole, among items
with behaviour alone and among new ones alone. Printed: NDCG of both and of the best baseline, their ratio, and its
interval over users (bootstrap, 95 %).
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from avrec_ray.bundle import load_bundle
from avrec_ray.evaluation.baselines import rank_in_parts
from avrec_ray.evaluation.hits import keep_items
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.pipelines.baselines import read_baselines
from avrec_ray.pipelines.catalogue import read_fitted
from avrec_ray.pipelines.evaluate import oracle
from avrec_ray.pipelines.measured import SERVED, rank_rows
from avrec_ray.pipelines.question import ask

Floats = npt.NDArray[np.float64]
NUM_DRAWS = 2000


def main(storages: list[Path], cutoff: int) -> None:
    shares: dict[str, list[float]] = {}
    for storage in storages:
        print(f"\n{storage.name}   NDCG@{cutoff}: served, best baseline, oracle   served / oracle [95 %]")
        for part, ndcg in measure(storage, cutoff).items():
            served, best = ndcg.pop(SERVED), ndcg.pop("oracle")
            name = max(ndcg, key=lambda model: ndcg[model].mean())
            low, high = ratio_interval(served, best)
            share = served.mean() / best.mean()
            print(
                f"  {part:5} {len(served):4} users   {served.mean():.4f}   {ndcg[name].mean():.4f} ({name})   "
                f"{best.mean():.4f}   {share:.3f} [{low:.3f}, {high:.3f}]"
            )
            shares.setdefault(part, []).append(float(share))
    if len(storages) > 1:
        print("\nserved / oracle, mean over seeds   " + "   ".join(f"{p} {np.mean(s):.3f}" for p, s in shares.items()))


def measure(storage: Path, cutoff: int) -> dict[str, dict[str, Floats]]:
    """NDCG of each user with targets there, by part of the catalogue and model."""
    bundle = load_bundle(max((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime))
    question = ask(storage, bundle.items.index_of, bundle.items.durations)
    tables = {
        SERVED: pq.read_table(storage / "evaluation" / "recommendations.parquet"),
        **read_baselines(storage / "baselines"),
    }
    ranked = {name: rank_rows(table, question.users, bundle) for name, table in tables.items()}
    size = len(bundle.items)
    scorers = list(oracle(storage / "tables" / "truth", read_fitted(storage, ("test",)), question.users, bundle))
    if not scorers:
        raise SystemExit(f"{storage} holds no tables/truth: only synthetic data have an oracle")
    for name, score in scorers:
        ranked[name] = rank_in_parts(score, question.seen, size, size, question.candidates)
    found = {}
    for part, kept in (("all", np.ones(size, bool)), ("warm", bundle.items.warm), ("new", ~bundle.items.warm)):
        targets = [rows[kept[rows]] for rows in question.targets]
        asked = np.array([len(rows) > 0 for rows in targets])
        lists = {name: keep_items(rows, kept)[asked] for name, rows in ranked.items()}
        of_asked = [rows for rows in targets if len(rows)]
        found[part] = {name: ndcg_at_k(rows, of_asked, cutoff) for name, rows in lists.items()}
    return found


def ratio_interval(served: Floats, best: Floats) -> tuple[float, float]:
    """Of the ratio of means, users drawn with replacement."""
    rows = np.random.default_rng(0).integers(0, len(served), (NUM_DRAWS, len(served)))
    low, high = np.quantile(served[rows].mean(1) / best[rows].mean(1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storages", nargs="+", type=Path, metavar="STORAGE")
    parser.add_argument("--cutoff", type=int, default=10)
    args = parser.parse_args()
    main(args.storages, args.cutoff)
