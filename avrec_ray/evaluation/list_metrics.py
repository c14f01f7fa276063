"""What lists are like beside right: popular, new, varied, surprising, true to a user's taste, fair to the catalogue.

`ranked` and `targets` as in rank_metrics.py; float64 [U], one value a user, unless a function says otherwise.

Dimension key: U users, K list length, N catalogue, D embedding, C categories.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import Bools, Floats, Hits, Ranked, Targets, find_hits

MAX_VALUES = 4_000_000
"""Numbers that are gathered at once, which bounds memory at some 100 MB whatever the number of users."""


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


def intra_list_distance_at_k(ranked: Ranked, embeddings: npt.NDArray[np.floating], k: int) -> Floats:
    """Mean of 1 - cosine over the pairs of the first k, in [0, 2]; NaN for a list of fewer than two items.

    `embeddings` [N, D] of any length; a row of zeros, an item without embedding, is at distance 1 from all others.

    >>> intra_list_distance_at_k(np.array([[0, 1, 2]]), np.array([[1.0, 0], [2, 0], [0, 1]]), k=3).round(4).tolist()
    [0.6667]
    """

    def distances(listed: Ranked) -> Floats:
        vectors = _gather(listed, embeddings)
        norms = np.linalg.norm(vectors, axis=2, keepdims=True)
        vectors = vectors / np.where(norms > 0, norms, 1)
        return 1 - vectors @ vectors.transpose(0, 2, 1)

    return _mean_over_pairs(ranked[:, :k], distances, embeddings.shape[1])


def category_distance_at_k(ranked: Ranked, categories: Bools, k: int) -> Floats:
    """Mean of 1 - shared / all categories (Jaccard distance) over the pairs of the first k; NaN below two items.

    With one category an item that is the share of pairs of different categories. Two items without any are alike.

    Args:
        categories: bool [N, C], an item in none, one or several: see `category_matrix`.
    """

    def distances(listed: Ranked) -> Floats:
        members = _gather(listed, categories)
        shared = members @ members.transpose(0, 2, 1)
        sizes = members.sum(2)
        union = sizes[:, :, None] + sizes[:, None, :] - shared
        return np.where(union > 0, 1 - shared / np.maximum(union, 1), 0.0)

    return _mean_over_pairs(ranked[:, :k], distances, categories.shape[1])


def serendipity_at_k(
    ranked: Ranked, targets: Targets | Hits, popularity: npt.NDArray[np.integer] | npt.NDArray[np.floating], k: int
) -> Floats:
    """Hits weighted by how much higher they stand than in a list by popularity, over k; in [0, 1].

    A hit at `rank` weighs max(0, (popularity rank - rank) / N). Equally popular items share a rank, 1 the most popular,
    without gaps; an item without choices weighs (N + 1 - rank) / N. `Serendipity(k)` of RecTools, which divides by the
    items listed where these are fewer than k.

    Args:
        popularity: [N] counts or shares of training choices.
    """
    hits = find_hits(ranked[:, :k], targets)
    num_items = len(popularity)
    chosen = popularity[popularity > 0]
    by_popularity = len(np.unique(chosen)) - np.searchsorted(np.unique(chosen), popularity)
    by_popularity = np.where(popularity > 0, by_popularity, num_items + 1)
    gain = by_popularity[np.maximum(ranked[:, :k], 0)] - np.arange(1, hits.shape[1] + 1)
    return (hits * np.maximum(gain, 0)).sum(1) / (num_items * k)


def unexpected_hits_at_k(ranked: Ranked, targets: Targets | Hits, expected: Ranked, k: int) -> Floats:
    """Share of the first k places with a target that the first k of an obvious list lack (after Ge et al., "Beyond
    Accuracy", RecSys 2010).

    Args:
        expected: [U, K'] lists of a plain recommender, such as the baseline "popularity".
    """
    hits = find_hits(ranked[:, :k], targets)
    obvious = [row[row >= 0] for row in expected[:, :k]]
    return (hits & ~find_hits(ranked[:, :k], obvious)).sum(1) / k


def miscalibration_at_k(
    ranked: Ranked, histories: Sequence[npt.NDArray[np.int64]], categories: Bools, k: int, alpha: float = 0.01
) -> Floats:
    """How far the categories of the first k are from those of the history: KL divergence in nats, 0 where they agree.

    KL(p || (1 - alpha) q + alpha p) of the category shares p of a history and q of a list, each item giving one part
    in equal shares to its categories (Steck, "Calibrated Recommendations", RecSys 2018, without weights of rank or
    time). NaN where the list or the history has no item with a category.

    Args:
        histories: for each user the `item_idx` of the choices so far, repeats counted.
        categories: bool [N, C]: see `category_matrix`.
        alpha: in (0, 1); keeps the divergence finite where a list lacks a category.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}; expected a number between 0 and 1, such as 0.01")
    shares = categories / np.maximum(categories.sum(1, keepdims=True), 1)
    wanted = _category_shares([np.asarray(history, np.int64) for history in histories], shares)
    listed = _category_shares([row[row >= 0] for row in ranked[:, :k]], shares)
    smoothed = (1 - alpha) * listed + alpha * wanted
    terms = np.zeros_like(wanted)
    np.log(wanted / np.where(wanted > 0, smoothed, 1), out=terms, where=wanted > 0)
    known = (wanted.sum(1) > 0) & (listed.sum(1) > 0)
    return np.where(known, (wanted * terms).sum(1), np.nan)


def category_matrix(labels: Sequence[str | Sequence[str] | None]) -> tuple[Bools, list[str]]:
    """Bool [N, C] and the names of its C columns, sorted, from one category an item, several, or None.

    >>> matrix, names = category_matrix(["music", None, ["news", "music"]])
    >>> matrix.tolist(), names
    ([[True, False], [False, False], [True, True]], ['music', 'news'])
    """
    each = [() if label is None else (label,) if isinstance(label, str) else tuple(label) for label in labels]
    names = sorted({name for label in each for name in label})
    column = {name: position for position, name in enumerate(names)}
    matrix = np.zeros((len(each), len(names)), bool)
    for row, label in enumerate(each):
        matrix[row, [column[name] for name in label]] = True
    return matrix, names


def _mean_over_pairs(listed: Ranked, distances: Callable[[Ranked], Floats], width: int) -> Floats:
    """Mean over pairs of present places of a symmetric [U', K, K], computed for some users at a time."""
    means = [np.zeros(0)]
    for block in _user_blocks(listed, width):
        present = block >= 0
        pairs = present[:, :, None] & present[:, None, :] & ~np.eye(block.shape[1], dtype=bool)
        counts = pairs.sum((1, 2))
        totals = np.where(pairs, distances(block), 0.0).sum((1, 2))
        means.append(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan))
    return np.concatenate(means)


def _user_blocks(listed: Ranked, width: int) -> Iterator[Ranked]:
    num_places = max(1, listed.shape[1])
    step = max(1, MAX_VALUES // (num_places * max(width, num_places)))
    return (listed[start : start + step] for start in range(0, len(listed), step))


def _gather(listed: Ranked, rows: npt.NDArray[np.generic]) -> Floats:
    """Float64 [U, K, D] rows of the listed items; whatever is at -1 is to be left out."""
    return rows[np.maximum(listed, 0)].astype(np.float64)


def _category_shares(items: Sequence[npt.NDArray[np.int64]], shares: Floats) -> Floats:
    """[U, C] mean of `shares` [N, C] over each user's items that have a category; zeros where none has."""
    totals = np.zeros((len(items), shares.shape[1]))
    for row, owned in enumerate(items):  # one user at a time: memory of one history
        totals[row] = shares[owned].sum(0)
    return totals / np.maximum(totals.sum(1, keepdims=True), np.finfo(np.float64).tiny)


def _mean_listed(listed: Ranked, values: Floats) -> Floats:
    present = listed >= 0
    counts = present.sum(1)
    totals = np.where(present, values[np.maximum(listed, 0)], 0.0).sum(1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
