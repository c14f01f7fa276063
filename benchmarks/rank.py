"""How long match, rerank and policy take for one request in one process, and how that grows.

Run: PYTHONPATH=. python -m benchmarks.rank [--requests 200] [--rounds 3]

Bundles with untrained models of the demo's sizes are written to a temporary folder; weights do not change what is
computed. Rows vary one thing at a time from 200 candidates, 50 events and 10,000 items; rounds of all rows are
interleaved. Figures are medians in milliseconds of one thread; growth is against the row marked "base".
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Event, Query
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

HISTORY_LENGTH = 1000


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    candidates: int = 200
    events: int = 50
    items: int = 10_000
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    k: int = 20
    explain: bool = False


ROWS = [
    Row("base"),
    *(Row(f"{n} candidates", candidates=n) for n in (50, 100, 400, 800)),
    *(Row(f"{n} events", events=n) for n in (5, 200, 1000)),
    *(Row(f"{n:,} items", items=n) for n in (1_000, 100_000)),
    Row("MMR", policy=PolicyConfig(diversity=0.3)),
    Row("DPP", policy=PolicyConfig(diversity=0.3, diversifier="dpp")),
    Row("caps", policy=PolicyConfig(max_per_creator=2, max_per_category=5)),
    Row("explained", explain=True),
]


def main(num_requests: int, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        bundles = {items: bundle_of(Path(place), items) for items in sorted({row.items for row in ROWS})}
        parts = {row.name: parts_of(row, bundles[row.items]) for row in ROWS}
        taken: dict[str, list[np.ndarray]] = {row.name: [] for row in ROWS}
        for seed in range(rounds):
            for row in ROWS:
                taken[row.name].append(measure(row, *parts[row.name], num_requests // rounds, seed))
    print(f"{'':16}{'match':>9}{'rerank':>9}{'total':>9}{'p99':>9}{'growth':>9}   ms; {num_requests} requests a row")
    base = np.median(np.concatenate(taken["base"]).sum(1))
    for name, rounds_of in taken.items():
        times = np.concatenate(rounds_of)
        match, rerank = np.median(times, 0)
        total, last = np.quantile(times.sum(1), [0.5, 0.99])
        print(f"{name:16}{match:9.2f}{rerank:9.2f}{total:9.2f}{last:9.2f}{total / base:9.2f}")


def bundle_of(place: Path, num_items: int) -> Bundle:
    """A bundle whose user tower and reranker have the demo's sizes; items are cheap to embed."""
    towers = tiny_towers(history_length=HISTORY_LENGTH, embedding_dim=64, model_dim=64, num_heads=4)
    folder = build_tiny_bundle(
        place / f"v-{num_items}", num_items, towers=towers, reranker=RerankerConfig(), head_std=0.1,
        num_users=num_items // 10, num_choices=num_items * 5,
    )  # fmt: skip
    return load_bundle(folder)


def parts_of(row: Row, bundle: Bundle) -> tuple[Matcher, Reranker]:
    """Matcher and reranker as a replica has them."""
    matcher = MatcherConfig(num_candidates=row.candidates - row.candidates // 10, num_fresh=row.candidates // 10)
    return Matcher(bundle, matcher), Reranker(bundle, row.policy)


def measure(row: Row, matcher: Matcher, reranker: Reranker, num_requests: int, seed: int) -> np.ndarray:
    """Milliseconds of match and of rerank with policy, [requests, 2]."""
    rng = np.random.default_rng(seed)
    times = np.zeros((num_requests + 2, 2))
    for number in range(num_requests + 2):
        items = rng.integers(0, row.items, row.events).tolist()
        names = matcher.bundle.items.item_ids
        history = tuple(Event("u", names[item], "view", 60.0 * place) for place, item in enumerate(items))
        query = replace(Query("u", history, row.k), explain=row.explain)
        began = time.perf_counter()
        (found,) = matcher.match([query])
        matched = time.perf_counter()
        ranking = reranker.rerank(query, found)
        times[number] = 1e3 * (matched - began), 1e3 * (time.perf_counter() - matched)
        assert len(ranking) == row.k
    return times[2:]  # the first ones open pages and plan kernels


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.requests, arguments.rounds)
