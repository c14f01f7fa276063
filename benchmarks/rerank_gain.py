"""What the reranker adds to the matcher, and what each score adds to the reranker.

Run: PYTHONPATH=. python -m benchmarks.rerank_gain STORAGE [STORAGE ...] [--cutoff 10] [--users 2000]

Each STORAGE is the folder of a finished full loop; several are seeds of one experiment. For users that its test asks
about, lists are made from the same candidates: in the matcher's order, as served, without attention, and without each
of the other scores (weights as fitted; nothing is fitted anew). For each: NDCG, and the interval of served minus it
over users.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import load_bundle
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.evaluation.significance import difference_interval, over_seeds
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.split import history_paths, read_candidates
from avrec_ray.ranking.config import SCORES
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Candidate, Event, Filters, Query

Scorer = Callable[[Query, list[Candidate]], list[str]]


def main(storages: list[Path], cutoff: int, num_users: int) -> None:
    found: dict[str, list[float]] = {}
    for storage in storages:
        ndcg = measure(storage, cutoff, num_users)
        rng = np.random.default_rng(0)
        print(f"\n{storage.name}: {len(ndcg['served'])} users   NDCG@{cutoff}   served minus it [95 %]")
        for name, values in ndcg.items():
            low, high = difference_interval(ndcg["served"], values, rng)
            print(
                f"  {name:22} {values.mean():.4f}   {np.mean(ndcg['served'] - values):+.4f} [{low:+.4f}, {high:+.4f}]"
            )
            found.setdefault(name, []).append(float(np.mean(ndcg["served"] - values)))
    if len(storages) > 1:
        print("\nserved minus it, over seeds")
        for name, gains in found.items():
            mean = over_seeds(gains)
            print(f"  {name:22} {mean.mean:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]")


def measure(storage: Path, cutoff: int, num_users: int) -> dict[str, np.ndarray]:
    """NDCG of each user [U] under each way to order the same candidates."""
    bundle = load_bundle(max((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime))
    question = ask(storage, bundle.items.index_of, bundle.items.durations)
    users = np.random.default_rng(0).permutation(len(question.users))[:num_users]
    past = histories(storage, {question.users[user] for user in users})
    candidates = read_candidates(storage)
    hidden = set(bundle.items.item_ids) - set(candidates or bundle.items.item_ids)
    matcher = Matcher(bundle, MatcherConfig(num_neighbours=100))
    ways = orders(Reranker(bundle))
    ranked = {name: np.full((len(users), cutoff), -1) for name in ways}
    for row, user in enumerate(users):
        name = question.users[user]
        query = Query(name, tuple(past.get(name, ())), cutoff, Filters(exclude_items=tuple(hidden)))
        (listed,) = matcher.match([query])
        for way, order in ways.items():
            items = [bundle.items.index_of[item_id] for item_id in order(query, listed)][:cutoff]
            ranked[way][row, : len(items)] = items
    targets = [question.targets[user] for user in users]
    return {name: ndcg_at_k(lists, targets, cutoff) for name, lists in ranked.items()}


def orders(reranker: Reranker) -> dict[str, Scorer]:
    """Ways to order candidates; each changes the one reranker's weights for its own lists."""
    context, heads = reranker.model.context.weight, reranker.model.heads.weight
    fitted_context, fitted_heads = context.detach().clone(), heads.detach().clone()

    def with_weights(without: list[int], attention: bool = True) -> Scorer:
        def order(query: Query, listed: list[Candidate]) -> list[str]:
            with torch.no_grad():
                context.copy_(fitted_context)
                context[:, without] = 0.0
                heads.copy_(fitted_heads if attention else torch.zeros_like(heads))
            return [row.item_id for row in reranker.rerank(query, listed)]

        return order

    def as_matched(query: Query, listed: list[Candidate]) -> list[str]:
        return [candidate.item_id for candidate in sorted(listed, key=lambda each: -each.score)]

    return {
        "served": with_weights([]),
        "matcher alone": as_matched,
        "without attention": with_weights([], attention=False),
        **{f"without {name}": with_weights([feature]) for name, feature in SCORES.items()},
        "without popularity": with_weights([1, 2]),
        "without item to item": with_weights([SCORES["taste"], SCORES["session"], SCORES["content"]]),
    }


def histories(storage: Path, users: set[str]) -> dict[str, list[Event]]:
    """What each user did before test, oldest first."""
    rows = []
    for part, path in enumerate(history_paths(storage)):
        table = pq.read_table(path).to_pylist()
        rows += [(row["at"], part, number, row) for number, row in enumerate(table) if row["user_id"] in users]
    rows.sort(key=lambda row: row[:3])
    found: dict[str, list[Event]] = {}
    for at, _, _, row in rows:
        event = Event(row["user_id"], row["item_id"], row["event"], at.timestamp(), row["watch_seconds"], row["value"])
        found.setdefault(row["user_id"], []).append(event)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("storages", nargs="+", type=Path, metavar="STORAGE")
    parser.add_argument("--cutoff", type=int, default=10)
    parser.add_argument("--users", type=int, default=2000)
    arguments = parser.parse_args()
    main(arguments.storages, arguments.cutoff, arguments.users)
