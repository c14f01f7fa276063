"""What each source of candidates gives: how many, how many that no other names, and how much of what was chosen later.

Run: PYTHONPATH=. python -m benchmarks.sources STORAGE [--users 300] [--quota 50] [--seed 0]

STORAGE is the folder of a finished full loop, such as runs/demo after `make demo`; so many of its test users are drawn.
Every source is asked for as many items, over the newest bundle. `unique`: share of what a source names that no other
does. `alone`: share of held-out choices among what it names; `without`: among what the others name. `towers+`: among
what the user tower and the source name together; `towers`: among what the user tower names if asked for as many.
At the end NDCG@10 of served lists.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.evaluation.rank_metrics import ndcg_at_k
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.split import history_paths
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.retrieval.sources import SOURCES, Asked
from avrec_ray.types import Event, Filters, Query

Rows = npt.NDArray[np.int64]
CUTOFF = 10


def main(storage: Path, num_users: int, quota: int, seed: int) -> None:
    torch.set_num_threads(1)
    bundle = load_bundle(max((storage / "bundle").glob("v-*"), key=lambda folder: folder.stat().st_mtime))
    question = ask(storage, bundle.items.index_of, bundle.items.durations)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(question.users))[:num_users])
    users, targets = [question.users[n] for n in drawn], [question.targets[n] for n in drawn]
    barred = () if question.candidates is None else np.array(bundle.items.item_ids)[~question.candidates]
    queries = read_queries(storage, users, Filters(exclude_items=tuple(map(str, barred))))
    matcher = Matcher(bundle, every_source(quota))
    asked = [one for one, _ in matcher.asked(queries)]
    named = {name: [source(matcher.stock, one, quota)[0] for one in asked] for name, source in SOURCES.items()}
    print(f"{bundle.path.name}: {len(users)} users, {len(bundle.items)} items, at most {quota} items a source")
    print(f"{'source':14}{'items':>8}{'unique':>8}{'alone':>8}{'without':>9}{'towers+':>9}{'towers':>8}")
    for name, rows in named.items():
        print(f"{name:14}" + figure_line(name, rows, named, matcher, asked, targets), flush=True)
    together = [union(lists) for lists in zip(*named.values(), strict=True)]
    as_many = [longest(matcher, one, len(rows)) for one, rows in zip(asked, together, strict=True)]
    figures = f"{recall(together, targets):8.4f}{'':18}{recall(as_many, targets):8.4f}"
    print(f"{'all':14}{size(together):8.1f}{'':8}{figures}")
    ranks = {
        "towers alone": MatcherConfig(num_candidates=quota),
        "towers, twice as many": MatcherConfig(num_candidates=2 * quota),
        "and neighbours": MatcherConfig(num_candidates=quota, num_neighbours=quota),
        "all sources": every_source(quota),
    }
    print(f"\nNDCG@{CUTOFF} of served lists")
    for name, cfg in ranks.items():
        print(f"{name:24}{served(bundle, cfg, queries, targets):.4f}", flush=True)


def every_source(quota: int) -> MatcherConfig:
    return MatcherConfig(
        num_candidates=quota, num_neighbours=quota, num_item_to_item=quota, num_multi_interest=quota,
        multi_interest_queries=3, num_popular=quota, num_followed=quota, num_friends=quota, num_fresh=quota,
    )  # fmt: skip


def read_queries(storage: Path, users: Sequence[str], filters: Filters) -> list[Query]:
    """A query of each user, as a request about test sees them."""
    wanted = set(users)
    events: dict[str, list[Event]] = {user: [] for user in users}
    for path in history_paths(storage):
        for row in pq.read_table(path).to_pylist():
            if row["user_id"] in wanted:
                at = row["at"].timestamp()
                events[row["user_id"]].append(
                    Event(row["user_id"], row["item_id"], row["event"], at, row["watch_seconds"])
                )
    return [Query(user, tuple(sorted(events[user], key=lambda e: e.at_seconds)), 10, filters) for user in users]


def figure_line(
    name: str,
    rows: list[Rows],
    named: dict[str, list[Rows]],
    matcher: Matcher,
    asked: list[Asked],
    targets: Sequence[Rows],
) -> str:
    others = [union(lists) for lists in zip(*(named[other] for other in named if other != name), strict=True)]
    unique = sum(len(np.setdiff1d(own, other)) for own, other in zip(rows, others, strict=True))
    with_towers = [union(pair) for pair in zip(named["user_tower"], rows, strict=True)]
    as_many = [longest(matcher, one, len(both)) for one, both in zip(asked, with_towers, strict=True)]
    return (
        f"{size(rows):8.1f}{unique / max(sum(map(len, rows)), 1):8.3f}{recall(rows, targets):8.4f}"
        f"{recall(others, targets):9.4f}{recall(with_towers, targets):9.4f}{recall(as_many, targets):8.4f}"
    )


def longest(matcher: Matcher, asked: Asked, count: int) -> Rows:
    """The user tower's `count` best."""
    return SOURCES["user_tower"](matcher.stock, asked, count)[0] if count else np.zeros(0, np.int64)


def union(lists: Sequence[Rows]) -> Rows:
    return np.unique(np.concatenate(lists))


def size(lists: Sequence[Rows]) -> float:
    return float(np.mean([len(rows) for rows in lists]))


def recall(lists: Sequence[Rows], targets: Sequence[Rows]) -> float:
    return float(np.mean([np.isin(wanted, rows).mean() for rows, wanted in zip(lists, targets, strict=True)]))


def served(bundle: Bundle, cfg: MatcherConfig, queries: Sequence[Query], targets: Sequence[Rows]) -> float:
    lists = recommend(Matcher(bundle, cfg), Reranker(bundle), queries)
    ranked = np.full((len(lists), CUTOFF), -1, np.int64)
    for row, ranking in enumerate(lists):
        ranked[row, : len(ranking)] = [bundle.items.index_of[item.item_id] for item in ranking]
    return float(np.mean(ndcg_at_k(ranked, list(targets), CUTOFF)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--quota", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.storage, given.users, given.quota, given.seed)
