"""Neighbourhood baselines: items that the same users chose.

Dimension key: U users, N catalogue.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.choices import Rows, Scores, Times, distinct_pairs

_NO_ROWS = np.zeros(0, np.int64)


class ItemKNN:
    """Items that users who chose what you chose chose too: for each item the sum of its cosines with your choices.

    cosine(i, j) = users of both / (sqrt(users of i * users of j) + shrinkage). Only the `num_neighbours` nearest of the
    item that is scored count. Memory N x num_neighbours; time the sum over users of their squared number of choices.
    """

    def __init__(self, num_neighbours: int = 200, shrinkage: float = 0.0) -> None:
        self.num_neighbours = num_neighbours
        self.shrinkage = shrinkage

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        users, items = distinct_pairs(user_idx, item_idx, num_items)
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


class LastItem:
    """Cosine with the last choice alone, for streams in which only the present mood counts. Costs as ItemKNN."""

    def __init__(self, num_neighbours: int = 200, shrinkage: float = 0.0) -> None:
        self._neighbours = ItemKNN(num_neighbours, shrinkage)

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        self._neighbours.fit(user_idx, item_idx, at_seconds, num_users, num_items)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return self._neighbours.score([history[-1:] for history in histories])
