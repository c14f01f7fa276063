"""How many of the true nearest items the index finds, and the refusal to publish one that finds too few.

Filters are measured in two kinds: items drawn at random, as of one language, and all items of one region of the
embedding space, as of one genre, from which most queries are far.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from avrec_ray.errors import StageError
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import VectorIndex
from avrec_ray.retrieval.index_rows import Mask, Vectors

FILTER_SHARES = (0.1, 0.01)
"""Shares of the catalogue that measured filters allow."""
K = 100
"""Items that a measured query asks for."""
NUM_QUERIES = 200
"""Queries of a measurement."""


def recall_against_exact(index: VectorIndex, queries: Vectors, k: int, allowed: Mask | None = None) -> float:
    """Share of the true `k` best that `search` finds, mean over queries; 1.0 is exact. Equal scores are as good."""
    found, _ = index.search(queries, k, allowed)
    exact, _ = index.search_exact(queries, k, allowed)
    wanted = int(np.isfinite(exact[0]).sum()) if len(queries) else 0
    if not wanted:
        return 1.0
    threshold = exact[:, wanted - 1 : wanted] - 1e-6
    return float((found[:, :wanted] >= threshold).mean())


def measure_recall(index: VectorIndex, embeddings: Vectors, seed: int) -> dict[str, float]:
    """Recall at 100 without a filter and under each kind of filter, with items as queries.

    Args:
        index: of these embeddings.
        embeddings: float32 [N, D].
        seed: draws the queries and the filters.

    Returns:
        recall_at_100_of_exact, and the same with _random_10_percent, _region_10_percent and so on behind it.
    """
    rng = np.random.default_rng(seed)
    queries = embeddings[rng.choice(len(embeddings), min(NUM_QUERIES, len(embeddings)), replace=False)]
    k = min(K, len(embeddings))
    measured = {"recall_at_100_of_exact": recall_against_exact(index, queries, k)}
    for name, allowed in filters(embeddings, rng):
        measured[f"recall_at_100_of_exact_{name}"] = recall_against_exact(index, queries, k, allowed)
    return measured


def filters(embeddings: Vectors, rng: np.random.Generator) -> Iterator[tuple[str, Mask]]:
    """Of each share, a filter bool [N] of random items, and one of the items nearest to a random item."""
    num_items = len(embeddings)
    for share in FILTER_SHARES:
        num_allowed = max(1, round(share * num_items))
        nearness = embeddings @ embeddings[rng.integers(num_items)]
        for kind, rows in (
            ("random", rng.choice(num_items, num_allowed, replace=False)),
            ("region", np.argpartition(-nearness, num_allowed - 1)[:num_allowed]),
        ):
            allowed = np.zeros(num_items, bool)
            allowed[rows] = True
            yield f"{kind}_{share * 100:g}_percent", allowed


def check_recall(measured: Mapping[str, float], cfg: IndexConfig) -> None:
    """Raise StageError unless every recall is at least `index.min_recall`; it says which setting raises it."""
    name = min(measured, key=lambda key: measured[key])
    if measured[name] >= cfg.min_recall:
        return
    raise StageError(
        f"{name}={measured[name]:.4f} is below index.min_recall={cfg.min_recall}; the index is not published. Raise "
        f"index.num_probes (now {cfg.num_probes}), or set index.backend=flat (exact), or lower index.min_recall"
    )
