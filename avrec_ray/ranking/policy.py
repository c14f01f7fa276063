"""What happens to scores before a list is shown: filters, then diversity, then caps. Pure functions on arrays.

Dimension key: K candidates, D embedding, N catalogue.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.bundle import Catalogue
from avrec_ray.dataclass_io import check_range
from avrec_ray.types import Filters, Query

Order = npt.NDArray[np.int64]
"""Positions of candidates, the one to be shown first in front."""
Groups = Sequence[Hashable | None]
"""The group of each candidate; None belongs to no group."""


@dataclass(kw_only=True)
class PolicyConfig:
    """Rules of the list as a whole. All are off by default: then the list is in the order of the scores."""

    max_per_creator: int = 0
    """At most this many items of one creator in a list; 0: no cap."""
    max_per_category: int = 0
    """At most this many items of one category in a list; 0: no cap."""
    diversity: float = 0.0
    """0..1, for queries that ask for none: 0 is the order of the scores, 1 takes what is least like the items above."""
    fresh_share: float = 0.0
    """At least this share of the places goes to items that nobody has chosen yet: with 0.1 one of every ten places."""

    def __post_init__(self) -> None:
        check_range("policy.max_per_creator", self.max_per_creator, 0)
        check_range("policy.max_per_category", self.max_per_category, 0)
        check_range("policy.diversity", self.diversity, 0, 1)
        check_range("policy.fresh_share", self.fresh_share, 0, 1)


def apply_policy(
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    items: Catalogue,
    embeddings: npt.NDArray[np.float32],
    query: Query,
    cfg: PolicyConfig,
) -> Order:
    """Positions of the candidates to show, best first: `query.k` of them while so many pass the filters.

    Args:
        scores: [K] finite, higher is better.
        rows: [K] catalogue rows of the candidates.
        embeddings: [N, D] unit vectors of the catalogue.
        query: its filters and k count; its diversity does where it is above 0, else that of `cfg`.
    """
    allowed = np.flatnonzero(_allowed_rows(items, rows, query.filters))
    diversity = query.diversity or cfg.diversity
    order = allowed[mmr(scores[allowed], embeddings[rows[allowed]], diversity, len(allowed))]
    order = reserve_places(order, ~items.warm[rows], cfg.fresh_share)
    caps = [(items.creator_ids, cfg.max_per_creator), (items.categories, cfg.max_per_category)]
    return cap_groups(order, [([groups[row] for row in rows], cap) for groups, cap in caps], query.k)


def allowed_mask(
    categories: Sequence[str | None],
    languages: Sequence[str | None],
    durations: npt.NDArray[np.float32],
    filters: Filters,
    item_ids: Sequence[str] | None = None,
) -> npt.NDArray[np.bool_]:
    """Bool [N]: which items the filters allow. An item without the value asked for is left out.

    Args:
        durations: [N] seconds, NaN where unknown.
        item_ids: [N]; where given, `filters.exclude_items` counts too.

    >>> allowed_mask(["a", "b", None], [None] * 3, np.zeros(3, np.float32), Filters(categories=("a",))).tolist()
    [True, False, False]
    """
    keep = np.ones(len(durations), bool)
    if filters.categories:
        keep &= _is_in(categories, filters.categories)
    if filters.languages:
        keep &= _is_in(languages, filters.languages)
    if filters.max_duration_seconds is not None:
        keep &= durations <= filters.max_duration_seconds  # False where NaN
    if filters.exclude_items and item_ids is not None:
        keep &= ~_is_in(item_ids, filters.exclude_items)
    return keep


def mmr(scores: npt.NDArray[np.floating], embeddings: npt.NDArray[np.float32], diversity: float, k: int) -> Order:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): relevant, but unlike what is listed above.

    Each place goes to the candidate with the highest (1 - diversity) * relevance - diversity * similarity, where
    relevance is the score mapped to [0, 1] within the request, and similarity is the largest (1 + cosine) / 2 to an
    item already placed. Ties go to the better score, then to the earlier candidate. O(k K D).

    Args:
        scores: [K] finite.
        embeddings: [K, D] unit vectors.
        diversity: 0 gives the ranking by score exactly; 1 ignores the score after the first place.
        k: places to fill; fewer where there are fewer candidates.

    Raises:
        ValueError: a score is not finite, shapes differ, or diversity is outside [0, 1].
    """
    check_range("diversity", diversity, 0, 1)
    if len(scores) != len(embeddings) or not np.isfinite(scores).all():
        raise ValueError(f"got scores {scores.shape} for embeddings {embeddings.shape}; expected finite [K] and [K, D]")
    ranking = np.argsort(-scores, kind="stable").astype(np.int64)
    if diversity == 0 or not len(ranking):
        return ranking[:k]
    relevance = (1 - diversity) * _min_max(scores[ranking].astype(np.float64))
    vectors = embeddings[ranking].astype(np.float64)
    similarity = np.zeros(len(ranking))
    left = np.ones(len(ranking), bool)
    places = []
    for _ in range(min(k, len(ranking))):
        best = int(np.argmax(np.where(left, relevance - diversity * similarity, -np.inf)))
        places.append(best)
        left[best] = False
        similarity = np.maximum(similarity, (1 + vectors @ vectors[best]) / 2)
    return ranking[places]


def reserve_places(order: Order, fresh: npt.NDArray[np.bool_], share: float) -> Order:
    """Move fresh items up so that each run of 1 / share places holds one, at its end unless one stands there already.

    Args:
        order: positions of candidates, best first.
        fresh: bool [K], by position.
        share: 0 changes nothing.

    >>> reserve_places(np.arange(5), np.array([False, False, False, False, True]), share=0.5).tolist()
    [0, 4, 1, 2, 3]
    """
    if share <= 0:
        return order
    every = max(1, round(1 / share))
    waiting = [position for position in order.tolist() if fresh[position]]
    placed: list[int] = []
    used: set[int] = set()
    since_fresh = 0
    remaining = iter(order.tolist())
    while len(placed) < len(order):
        due = [position for position in waiting if position not in used][:1] if since_fresh == every - 1 else []
        position = due[0] if due else next(p for p in remaining if p not in used)
        placed.append(position)
        used.add(position)
        since_fresh = 0 if fresh[position] else min(since_fresh + 1, every - 1)
    return np.array(placed, np.int64)


def cap_per_group(order: Order, groups: Groups, cap: int, k: int) -> Order:
    """The first `k` of `order` with at most `cap` of one group, back-filled in order if that leaves fewer than `k`.

    >>> cap_per_group(np.arange(4), ["a", "a", "b", None], cap=1, k=3).tolist()
    [0, 2, 3]
    """
    return cap_groups(order, [(groups, cap)], k)


def cap_groups(order: Order, limits: Sequence[tuple[Groups, int]], k: int) -> Order:
    """`cap_per_group` under several groupings at once: an item is kept while each of its groups has room.

    Args:
        order: positions of candidates, best first.
        limits: pairs of groups [K] and cap; cap 0 is no limit.
        k: length of the list; the caps yield to it, since a short list is worse than a repeated creator.
    """
    limits = [(groups, cap) for groups, cap in limits if cap > 0]
    if not limits:
        return order[:k]
    counts: list[Counter[Hashable]] = [Counter() for _ in limits]
    kept: list[int] = []
    deferred: list[int] = []
    for position in order.tolist():
        mine = [groups[position] for groups, _ in limits]
        room = all(g is None or c[g] < cap for g, c, (_, cap) in zip(mine, counts, limits, strict=True))
        (kept if room else deferred).append(position)
        if room:
            for group, count in zip(mine, counts, strict=True):
                count[group] += 1
    return np.array((kept + deferred)[:k], np.int64)


def _allowed_rows(items: Catalogue, rows: npt.NDArray[np.int64], filters: Filters) -> npt.NDArray[np.bool_]:
    columns = [[column[row] for row in rows] for column in (items.categories, items.languages)]
    item_ids = [items.item_ids[row] for row in rows]
    return allowed_mask(columns[0], columns[1], items.durations[rows], filters, item_ids)


def _is_in(values: Sequence[str | None], wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
    chosen = set(wanted)
    return np.fromiter((value in chosen for value in values), bool, len(values))


def _min_max(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
