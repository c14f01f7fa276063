"""How well one list finds what a user chose: float64 [U], one value a user, from the places of hits.

`ranked` is int64 [U, K]: `item_idx` best first, -1 where the list is shorter; no item twice in a list.
`targets` is what each list should hold: one array, list or set of `item_idx` a user, or a bool matrix [U, N], or both
matched once as `Hits`; at least one target a user. A list shorter than k counts as if it went on with misses.

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import Floats, Hits, Ranked, Targets, count_targets, find_hits, match_targets


def recall_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """Share of a user's targets among the first k.

    >>> recall_at_k(np.array([[3, 1, 2]]), [[1, 9]], k=2).tolist()
    [0.5]
    """
    return find_hits(ranked[:, :k], targets).sum(1) / count_targets(targets)


def precision_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """Share of the first k places that hold a target."""
    return find_hits(ranked[:, :k], targets).sum(1) / k


def hit_rate_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """1 where any target is among the first k, else 0."""
    return np.asarray(find_hits(ranked[:, :k], targets).any(1), np.float64)


def ndcg_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """Gain 1 / log2(1 + rank) of the targets among the first k, over that of min(k, number of targets) first places."""
    hits = find_hits(ranked[:, :k], targets)
    ideal = np.cumsum(discounts(k))[np.minimum(count_targets(targets), k) - 1]
    gain: Floats = hits @ discounts(hits.shape[1])
    return gain / ideal


def mrr_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """1 / rank of the first target among the first k, 0 where there is none."""
    hits = find_hits(ranked[:, :k], targets)
    if not hits.shape[1]:
        return np.zeros(len(hits))
    return np.where(hits.any(1), 1 / (1.0 + hits.argmax(1)), 0.0)


def average_precision_at_k(ranked: Ranked, targets: Targets | Hits, k: int, divide_by: str = "achievable") -> Floats:
    """Precision at the rank of each target among the first k, added up and divided; its mean over users is MAP at k.

    Divided by the largest sum that k places allow, min(k, number of targets), so that a perfect list has 1. Libraries
    divide otherwise, which changes nothing where targets are at most k ("targets") or at least k ("k").

    Args:
        divide_by: "achievable"; "targets", which is `map@k` of ranx and `MAP(k)` of RecTools; or "k", which is
            `MAP(k, divide_by_k=True)` of RecTools.

    >>> average_precision_at_k(np.array([[3, 1, 2]]), [[3, 2, 8, 9]], k=3).round(4).tolist()
    [0.5556]
    """
    hits = find_hits(ranked[:, :k], targets)
    total = (hits * np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)).sum(1)
    num_targets = count_targets(targets)
    divisors = {"achievable": np.minimum(num_targets, k), "targets": num_targets, "k": np.full(len(hits), k)}
    if divide_by not in divisors:
        raise ValueError(f"divide_by={divide_by!r} is not one of {list(divisors)}")
    return total / divisors[divide_by]


def partial_auc_at_k(ranked: Ranked, targets: Targets | Hits, k: int) -> Floats:
    """Share of pairs (target, one of the k best ranked other items) in which the target stands before the other.

    The k best others may reach behind place k, so the whole list is read: give lists of at least k + number of targets
    places. A target that is not listed loses all its pairs, which is too little where a list is shorter than that.
    `PartialAUC(k)` of RecTools; Budhiraja et al., "Rich-Item Recommendations for Rich-Users", 2020.
    """
    hits = find_hits(ranked, targets)
    others_before = np.cumsum(~hits & (ranked >= 0), 1)
    wins: Floats = (hits * np.maximum(k - others_before, 0)).sum(1)
    return wins / (count_targets(targets) * k)


def auc(ranked: Ranked, targets: Targets | Hits, num_candidates: int | npt.NDArray[np.int64]) -> Floats:
    """Share of pairs (target, other candidate) in which the target stands before the other; float64 [U].

    What a list leaves out counts as tied behind it, half a win a pair: the expectation if the rest is in random order
    (limited AUC: Schröder et al., "Setting Goals and Choosing Metrics for Recommender System Evaluations", 2011).
    0.5 where every candidate is a target.

    Args:
        num_candidates: items that could have been listed, targets among them, for all or for each user [U].

    Raises:
        ValueError: a user has more listed items and targets than candidates.
    """
    hits, num_targets = find_hits(ranked, targets), count_targets(targets)
    is_other = ~hits & (ranked >= 0)
    num_others = np.broadcast_to(num_candidates, num_targets.shape) - num_targets
    unlisted_targets, unlisted_others = num_targets - hits.sum(1), num_others - is_other.sum(1)
    if (unlisted_others < 0).any():
        row = int(np.argmin(unlisted_others))
        raise ValueError(
            f"row {row} has {num_targets[row]} targets and {is_other[row].sum()} other listed items; expected at most "
            f"{num_others[row] + num_targets[row]} candidates: count the whole catalogue, targets included"
        )
    wins = (hits * (num_others[:, None] - np.cumsum(is_other, 1))).sum(1) + unlisted_targets * unlisted_others / 2
    return np.where(num_others > 0, wins / np.maximum(num_targets * num_others, 1), 0.5)


PER_USER: dict[str, Callable[[Ranked, Targets | Hits, int], Floats]] = {
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "mrr": mrr_at_k,
    "hit_rate": hit_rate_at_k,
    "precision": precision_at_k,
    "map": average_precision_at_k,
    "partial_auc": partial_auc_at_k,
}
"""Metrics of one list against its targets, by the name in results."""


def per_user_metrics(ranked: Ranked, targets: Targets | Hits, ks: Sequence[int] = (10, 20)) -> dict[str, Floats]:
    """Every metric of PER_USER at every k, keys like "ndcg_at_10", float64 [U] each."""
    hits = targets if isinstance(targets, Hits) else match_targets(ranked, targets)
    return {f"{name}_at_{k}": metric(ranked, hits, k) for k in ks for name, metric in PER_USER.items()}


def discounts(k: int) -> Floats:
    """1 / log2(1 + rank) of ranks 1..k."""
    weights: Floats = 1 / np.log2(np.arange(2, k + 2))
    return weights
