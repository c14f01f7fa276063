"""How good rankings are. Full ranking: nothing is sampled; a list holds the best unseen items of the whole catalogue.

`ranked` is int64 [U, K]: `item_idx` best first, -1 where the list is shorter; no item twice in a list.
`targets` is what each list should hold: one array, list or set of `item_idx` a user, or a bool matrix [U, N]; at least
one target a user. Functions named `*_at_k` give float64 [U], one value a user, unless they say otherwise. A list
shorter than k counts as if it went on with misses.

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

Ranked = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Targets = Sequence[Collection[int] | npt.NDArray[np.int64]] | Bools


def recall_at_k(ranked: Ranked, targets: Targets, k: int) -> Floats:
    """Share of a user's targets among the first k.

    >>> recall_at_k(np.array([[3, 1, 2]]), [[1, 9]], k=2).tolist()
    [0.5]
    """
    return find_hits(ranked[:, :k], targets).sum(1) / count_targets(targets)


def precision_at_k(ranked: Ranked, targets: Targets, k: int) -> Floats:
    """Share of the first k places that hold a target."""
    return find_hits(ranked[:, :k], targets).sum(1) / k


def hit_rate_at_k(ranked: Ranked, targets: Targets, k: int) -> Floats:
    """1 where any target is among the first k, else 0."""
    return np.asarray(find_hits(ranked[:, :k], targets).any(1), np.float64)


def ndcg_at_k(ranked: Ranked, targets: Targets, k: int) -> Floats:
    """Gain 1 / log2(1 + rank) of the targets among the first k, over that of min(k, number of targets) first places."""
    hits = find_hits(ranked[:, :k], targets)
    ideal = np.cumsum(discounts(k))[np.minimum(count_targets(targets), k) - 1]
    gain: Floats = hits @ discounts(hits.shape[1])
    return gain / ideal


def mrr_at_k(ranked: Ranked, targets: Targets, k: int) -> Floats:
    """1 / rank of the first target among the first k, 0 where there is none."""
    hits = find_hits(ranked[:, :k], targets)
    if not hits.shape[1]:
        return np.zeros(len(hits))
    return np.where(hits.any(1), 1 / (1.0 + hits.argmax(1)), 0.0)


def popularity_at_k(ranked: Ranked, popularity: npt.NDArray[np.floating], k: int) -> Floats:
    """Mean popularity [N] (share of training choices) of the first k; NaN for an empty list."""
    return _mean_listed(ranked[:, :k], popularity.astype(np.float64))


def novelty_at_k(ranked: Ranked, popularity: npt.NDArray[np.floating], k: int) -> Floats:
    """Mean self-information -log2(popularity) in bits of the first k; NaN for an empty list.

    An item without choices counts as if it had half of the smallest share above 0.
    """
    shares = popularity.astype(np.float64)
    floor = shares[shares > 0].min() / 2 if (shares > 0).any() else 1.0
    return _mean_listed(ranked[:, :k], -np.log2(np.maximum(shares, floor)))


def coverage_at_k(ranked: Ranked, num_items: int, k: int) -> float:
    """Share of the catalogue that is in anybody's first k."""
    return float((exposure_at_k(ranked, num_items, k) > 0).mean())


def gini_at_k(ranked: Ranked, num_items: int, k: int) -> float:
    """Inequality of exposure over the catalogue: 0 where all items are shown equally often, towards 1 where one takes
    all; NaN where nothing is shown."""
    counts = np.sort(exposure_at_k(ranked, num_items, k))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ counts / (num_items * counts.sum())) if counts.sum() else float("nan")


def exposure_at_k(ranked: Ranked, num_items: int, k: int) -> npt.NDArray[np.int64]:
    """Int64 [N]: in how many users' first k each item is."""
    listed = ranked[:, :k]
    return np.bincount(listed[listed >= 0], minlength=num_items)


PER_USER = {
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "mrr": mrr_at_k,
    "hit_rate": hit_rate_at_k,
    "precision": precision_at_k,
}
"""Metrics of one list against its targets, by the name in results."""


def per_user_metrics(ranked: Ranked, targets: Targets, ks: Sequence[int] = (10, 20)) -> dict[str, Floats]:
    """Every metric of PER_USER at every k, keys like "ndcg_at_10", float64 [U] each."""
    return {f"{name}_at_{k}": metric(ranked, targets, k) for k in ks for name, metric in PER_USER.items()}


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
    """
    _check_rankings(ranked, targets, num_items)
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
    cold_targets = [_cold(target, is_cold) for target in _as_lists(targets)]
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


def keep_items(ranked: Ranked, keep: Bools) -> Ranked:
    """Lists [U, K] with only the items of `keep` [N], moved up, -1 behind.

    >>> keep_items(np.array([[2, 0, 1]]), np.array([True, True, False])).tolist()
    [[0, 1, -1]]
    """
    dropped = (ranked < 0) | ~keep[np.maximum(ranked, 0)]
    order = np.argsort(dropped, axis=1, kind="stable")
    return np.take_along_axis(np.where(dropped, -1, ranked), order, 1)


def bootstrap_interval(
    per_user: Floats, rng: np.random.Generator, num_samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of `per_user` [U] under resampling of users. For two models pass the differences."""
    if not len(per_user):
        raise ValueError("got no users; an interval needs at least one")
    means = []
    for start in range(0, num_samples, 200):  # bounds memory at 200 resamples
        shape = (min(200, num_samples - start), len(per_user))
        means.append(per_user[rng.integers(0, len(per_user), shape)].mean(1))
    low, high = np.percentile(np.concatenate(means), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def find_hits(ranked: Ranked, targets: Targets) -> Bools:
    """Bool [U, K]: which places hold a target of that user. Never a place with -1."""
    if isinstance(targets, np.ndarray):
        hits: Bools = np.take_along_axis(targets, np.maximum(ranked, 0), 1) & (ranked >= 0)
        return hits
    users = np.repeat(np.arange(len(targets)), [len(t) for t in targets])
    items = np.concatenate([_as_array(t) for t in targets]) if len(targets) else np.zeros(0, np.int64)
    stride = 1 + max(int(items.max(initial=0)), int(ranked.max(initial=0)))
    codes = np.arange(len(ranked))[:, None] * stride + ranked
    return np.isin(codes, users * stride + items) & (ranked >= 0)


def count_targets(targets: Targets) -> npt.NDArray[np.int64]:
    """Int64 [U]: distinct targets of each user."""
    if isinstance(targets, np.ndarray):
        return targets.sum(1)
    return np.array([len(np.unique(_as_array(t))) for t in targets], np.int64)


def discounts(k: int) -> Floats:
    """1 / log2(1 + rank) of ranks 1..k."""
    weights: Floats = 1 / np.log2(np.arange(2, k + 2))
    return weights


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


def _as_lists(targets: Targets) -> list[npt.NDArray[np.int64]]:
    if isinstance(targets, np.ndarray):
        return [np.flatnonzero(row) for row in targets]
    return [np.asarray(list(target), np.int64) for target in targets]


def _check_rankings(ranked: Ranked, targets: Targets, num_items: int | None) -> None:
    if not len(ranked) or len(ranked) != len(targets):
        raise ValueError(f"got {len(ranked)} lists and {len(targets)} users' targets; expected as many, at least one")
    if not count_targets(targets).all():
        row = int(np.argmin(count_targets(targets)))
        raise ValueError(f"user in row {row} has no target; leave out users without held-out choices")
    if num_items is not None and ranked.size and ranked.max() >= num_items:
        raise ValueError(f"a list holds item_idx {ranked.max()}; the catalogue has {num_items} items")
    placed = np.sort(ranked, axis=1)
    repeated = ((placed[:, 1:] == placed[:, :-1]) & (placed[:, 1:] >= 0)).any(1)
    if repeated.any():
        raise ValueError(f"the list in row {np.argmax(repeated)} holds an item twice; expected distinct items")


def _as_array(targets: Collection[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.asarray(targets if isinstance(targets, np.ndarray) else list(targets), np.int64)


def _mean_listed(listed: Ranked, values: Floats) -> Floats:
    present = listed >= 0
    counts = present.sum(1)
    totals = np.where(present, values[np.maximum(listed, 0)], 0.0).sum(1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _mean_known(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
