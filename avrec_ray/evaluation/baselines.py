"""Baselines that every model is shown beside, behind one interface: `fit` on choices, `score` histories.

Dimension key: U users, N catalogue.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
DAY_SECONDS = 86_400.0
_NO_ROWS = np.zeros(0, np.int64)


class Baseline(Protocol):
    """What a baseline can do."""

    def fit(
        self, user_idx: Rows, item_idx: Rows, at_seconds: npt.NDArray[np.float64], num_users: int, num_items: int
    ) -> None:
        """Learn from choices: parallel arrays [E], any order; `at_seconds` are POSIX times."""

    def score(self, histories: Sequence[Rows]) -> Scores:
        """Float32 [U, N], higher is better, for users given by the `item_idx` they chose, oldest first.

        Equal scores mean that the baseline has no opinion. Memory is U x N: pass large sets of users in parts.
        """


class Popularity:
    """How many users chose each item: the same list for everybody."""

    def fit(
        self, user_idx: Rows, item_idx: Rows, at_seconds: npt.NDArray[np.float64], num_users: int, num_items: int
    ) -> None:
        """See Baseline."""
        _, items = _distinct_pairs(user_idx, item_idx, num_items)
        self._counts = np.bincount(items, minlength=num_items).astype(np.float32)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.tile(self._counts, (len(histories), 1))


class RecentPopularity:
    """How often each item was chosen lately: a choice counts half for each `half_life_days` before the newest."""

    def __init__(self, half_life_days: float = 7.0) -> None:
        self.half_life_days = half_life_days

    def fit(
        self, user_idx: Rows, item_idx: Rows, at_seconds: npt.NDArray[np.float64], num_users: int, num_items: int
    ) -> None:
        """See Baseline."""
        age_days = (at_seconds.max(initial=0.0) - at_seconds) / DAY_SECONDS
        weights = 0.5 ** (age_days / self.half_life_days)
        self._counts = np.bincount(item_idx, weights=weights, minlength=num_items).astype(np.float32)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.tile(self._counts, (len(histories), 1))


class ItemKNN:
    """Items that users who chose what you chose chose too: for each item the sum of its cosines with your choices.

    cosine(i, j) = users of both / (sqrt(users of i * users of j) + shrinkage). Only the `num_neighbours` nearest of the
    item that is scored count. Memory N x num_neighbours; time the sum over users of their squared number of choices.
    """

    def __init__(self, num_neighbours: int = 200, shrinkage: float = 0.0) -> None:
        self.num_neighbours = num_neighbours
        self.shrinkage = shrinkage

    def fit(
        self, user_idx: Rows, item_idx: Rows, at_seconds: npt.NDArray[np.float64], num_users: int, num_items: int
    ) -> None:
        """See Baseline."""
        users, items = _distinct_pairs(user_idx, item_idx, num_items)
        items_of_user = np.split(items, np.cumsum(np.bincount(users, minlength=num_users))[:-1])
        counts = np.bincount(items, minlength=num_items)
        users_of_item = np.split(users[np.argsort(items, kind="stable")], np.cumsum(counts)[:-1])
        near, cosines, sizes = [_NO_ROWS], [np.zeros(0)], np.zeros(num_items, np.int64)
        for item in np.flatnonzero(counts).tolist():
            together = np.concatenate([items_of_user[user] for user in users_of_item[item]])
            found, values = self._nearest(item, np.bincount(together, minlength=num_items), counts)
            near.append(found)
            cosines.append(values)
            sizes[item] = len(found)
        self._index_by_choice(np.concatenate(near), np.concatenate(cosines), sizes)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        num_items = len(self._starts) - 1
        scores = np.zeros((len(histories), num_items), np.float32)
        for row, history in enumerate(histories):
            spans = [slice(self._starts[item], self._starts[item + 1]) for item in np.unique(history)]
            if spans:
                scored = np.concatenate([self._scored[span] for span in spans])
                cosines = np.concatenate([self._cosines[span] for span in spans])
                scores[row] = np.bincount(scored, weights=cosines, minlength=num_items)
        return scores

    def _nearest(self, item: int, both: Rows, counts: Rows) -> tuple[Rows, npt.NDArray[np.float64]]:
        """Neighbours of an item and their cosines, from the users it shares with each item and each one's own."""
        both[item] = 0
        found = np.flatnonzero(both)
        cosines = both[found] / (np.sqrt(counts[item] * counts[found]) + self.shrinkage)
        nearest = np.argsort(-cosines, kind="stable")[: self.num_neighbours]
        return found[nearest], cosines[nearest]

    def _index_by_choice(self, near: Rows, cosines: npt.NDArray[np.float64], sizes: Rows) -> None:
        """Turn lists of each scored item's neighbours into lists, for each choice, of the items it speaks for."""
        order = np.argsort(near, kind="stable")
        self._scored, self._cosines = np.repeat(np.arange(len(sizes)), sizes)[order], cosines[order]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(near, minlength=len(sizes)))])


BASELINES: dict[str, Callable[[], Baseline]] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "item_knn": ItemKNN,
}
"""Every baseline with its default settings, by its name in metric tables."""


def top_k(
    scores: npt.NDArray[np.floating], seen: Sequence[Rows], k: int, candidates: npt.NDArray[np.bool_] | None = None
) -> Rows:
    """Lists of the best unseen items, int64 [U, k], -1 where fewer can be listed. Equal scores by `item_idx`.

    Args:
        scores: [U, N]; an item with a score that is not finite is never listed.
        seen: for each user the `item_idx` to leave out.
        candidates: bool [N]; only these are listed. None: all.

    >>> top_k(np.array([[1.0, 3.0, 3.0, 2.0]]), [np.array([2])], k=2).tolist()
    [[1, 3]]
    """
    ranked = np.full((len(scores), k), -1, np.int64)
    for row, (user_scores, user_seen) in enumerate(zip(scores, seen, strict=True)):
        usable = np.isfinite(user_scores) if candidates is None else np.isfinite(user_scores) & candidates
        usable[user_seen] = False
        pool = np.flatnonzero(usable)
        if len(pool) > 4 * k:  # exact shortcut: what scores as high as the k-th, then a stable sort of these
            threshold = np.partition(user_scores[pool], len(pool) - k)[len(pool) - k]
            pool = pool[user_scores[pool] >= threshold]
        best = pool[np.argsort(-user_scores[pool], kind="stable")][:k]
        ranked[row, : len(best)] = best
    return ranked


def _distinct_pairs(user_idx: Rows, item_idx: Rows, num_items: int) -> tuple[Rows, Rows]:
    """Each (user, item) once, sorted by user, then item."""
    codes = np.unique(user_idx.astype(np.int64) * num_items + item_idx)
    return codes // num_items, codes % num_items
