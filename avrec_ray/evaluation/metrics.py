"""How good rankings are. Full ranking: nothing is sampled; a list holds the best unseen items of the whole catalogue.

Here: the means that results are made of. rank_metrics.py holds what counts hits, list_metrics.py what lists are like
beside right; their names are here too. `ranked` is int64 [U, K]: `item_idx` best first, -1 where the list is shorter.
`targets` is what each list should hold: one array, list or set of `item_idx` a user, or a bool matrix [U, N].

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import (
    Bools,
    Floats,
    Hits,
    Ranked,
    Targets,
    check_rankings,
    count_targets,
    find_hits,
    keep_items,
    match_targets,
    target_lists,
)
from avrec_ray.evaluation.list_metrics import (
    coverage_at_k,
    exposure_at_k,
    gini_at_k,
    novelty_at_k,
    popularity_at_k,
)
from avrec_ray.evaluation.rank_metrics import (
    PER_USER,
    auc,
    average_precision_at_k,
    discounts,
    hit_rate_at_k,
    mrr_at_k,
    ndcg_at_k,
    partial_auc_at_k,
    per_user_metrics,
    precision_at_k,
    recall_at_k,
)

__all__ = [
    "PER_USER",
    "Bools",
    "Floats",
    "Hits",
    "Ranked",
    "Targets",
    "auc",
    "average_precision_at_k",
    "chance_ndcg",
    "chance_recall",
    "cold_item_metrics",
    "count_targets",
    "coverage_at_k",
    "discounts",
    "evaluate_rankings",
    "exposure_at_k",
    "find_hits",
    "gini_at_k",
    "hit_rate_at_k",
    "keep_items",
    "match_targets",
    "mrr_at_k",
    "ndcg_at_k",
    "novelty_at_k",
    "partial_auc_at_k",
    "per_user_metrics",
    "popularity_at_k",
    "precision_at_k",
    "recall_at_k",
]


def evaluate_rankings(
    ranked: Ranked,
    targets: Targets,
    num_items: int | None = None,
    ks: Sequence[int] = (10, 20),
    popularity: npt.NDArray[np.floating] | None = None,
) -> dict[str, float]:
    """Means over users, keys like "ndcg_at_10", and "num_users".

    Args:
        num_items: N; where given, coverage and Gini over the catalogue are added.
        popularity: [N] shares of training choices; where given, popularity and novelty of the lists are added.

    Raises:
        ValueError: nobody to evaluate, a user without target, an item twice in a list or outside the catalogue.

    >>> results = evaluate_rankings(np.array([[3, 1], [0, 2]]), [[1], [4]], num_items=5, ks=(2,))
    >>> results["recall_at_2"], results["mrr_at_2"], results["coverage_at_2"]
    (0.5, 0.25, 0.8)
    """
    check_rankings(ranked, targets, num_items)
    results = {name: float(values.mean()) for name, values in per_user_metrics(ranked, targets, ks).items()}
    for k in ks if num_items is not None else ():
        results[f"coverage_at_{k}"] = coverage_at_k(ranked, num_items or 0, k)
        results[f"gini_at_{k}"] = gini_at_k(ranked, num_items or 0, k)
    for k in ks if popularity is not None else ():
        assert popularity is not None
        results[f"popularity_at_{k}"] = _mean_known(popularity_at_k(ranked, popularity, k))
        results[f"novelty_at_{k}"] = _mean_known(novelty_at_k(ranked, popularity, k))
    return results | {"num_users": float(len(ranked))}


def cold_item_metrics(
    ranked: Ranked,
    targets: Targets,
    is_cold: Bools,
    k: int,
    num_seen: npt.NDArray[np.int64] | None = None,
    among_cold: Ranked | None = None,
) -> dict[str, float]:
    """Recall and NDCG on cold targets alone, of users that have any, each beside its expectation under random ranking.

    Keys: `cold_recall_at_k`, `cold_ndcg_at_k` and `cold_chance_recall_at_k`, `cold_chance_ndcg_at_k` where cold items
    compete with all others; `cold_share_at_k`, the share of shown places that hold a cold item, beside
    `cold_share_of_catalogue`; `cold_num_users`. With `among_cold` also `cold_only_*`: they compete with each other.

    Args:
        is_cold: bool [N].
        num_seen: [U] catalogue items that a user's list leaves out because they were seen; chance draws from the rest.
            None: 0, which makes chance a little too low.
        among_cold: lists [U, K'] ranked among cold items alone: `top_k(..., candidates=is_cold)`, or `keep_items` of
            lists that go through the whole catalogue.

    Raises:
        ValueError: no user has a cold target.
    """
    cold_targets = [_cold(target, is_cold) for target in target_lists(targets)]
    asked = np.array([len(target) > 0 for target in cold_targets], bool)
    if not asked.any():
        raise ValueError(
            f"none of {len(asked)} users has a target among the {is_cold.sum()} cold items; skip this slice"
        )
    kept = [target for target in cold_targets if len(target)]
    num_candidates = len(is_cold) - (np.zeros(len(asked), np.int64) if num_seen is None else num_seen)[asked]
    listed = ranked[:, :k]
    results = _against_chance("cold", ranked[asked], kept, num_candidates, k)
    results[f"cold_share_at_{k}"] = float(is_cold[listed[listed >= 0]].mean()) if (listed >= 0).any() else 0.0
    results["cold_share_of_catalogue"] = float(is_cold.mean())
    results["cold_num_users"] = float(asked.sum())
    if among_cold is not None:
        results |= _against_chance("cold_only", among_cold[asked], kept, np.full(len(kept), is_cold.sum()), k)
    return results


def chance_recall(num_candidates: npt.NDArray[np.int64], k: int) -> Floats:
    """Expected recall at k of a random ranking: each candidate is among the first k with this probability."""
    return np.minimum(k / num_candidates, 1.0)


def chance_ndcg(num_targets: npt.NDArray[np.int64], num_candidates: npt.NDArray[np.int64], k: int) -> Floats:
    """Expected NDCG at k of a random ranking: each place holds a target with probability targets / candidates."""
    gains = np.cumsum(discounts(k))
    expected = num_targets / num_candidates * gains[np.minimum(num_candidates, k) - 1]
    return expected / gains[np.minimum(num_targets, k) - 1]


def _against_chance(
    name: str, ranked: Ranked, targets: list[npt.NDArray[np.int64]], num_candidates: npt.NDArray[np.int64], k: int
) -> dict[str, float]:
    return {
        f"{name}_recall_at_{k}": float(recall_at_k(ranked, targets, k).mean()),
        f"{name}_chance_recall_at_{k}": float(chance_recall(num_candidates, k).mean()),
        f"{name}_ndcg_at_{k}": float(ndcg_at_k(ranked, targets, k).mean()),
        f"{name}_chance_ndcg_at_{k}": float(chance_ndcg(count_targets(targets), num_candidates, k).mean()),
    }


def _cold(target: npt.NDArray[np.int64], is_cold: Bools) -> npt.NDArray[np.int64]:
    return np.unique(target[is_cold[target]])


def _mean_known(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
