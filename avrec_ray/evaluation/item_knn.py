"""Neighbourhood baselines: items that the same users chose.

Dimension key: U users, N catalogue.
"""

from collections.abc import Sequence

import numpy as np

from avrec_ray.dataclass_io import check_choice
from avrec_ray.evaluation.choices import Rows, Scores, Times
from avrec_ray.retrieval.neighbours import SIMILARITIES, fit_neighbours


class ItemKNN:
    """Items that users who chose what you chose chose too: for each item, summed, how like your choices it is.

    See `fit_neighbours` for the similarities. Only the `num_neighbours` nearest of the item that is scored count.
    Memory N x num_neighbours; time the sum over users of their squared number of choices.
    """

    def __init__(self, num_neighbours: int = 200, shrinkage: float = 0.0, similarity: str = "cosine") -> None:
        check_choice("item_knn.similarity", similarity, SIMILARITIES)
        self.num_neighbours, self.shrinkage, self.similarity = num_neighbours, shrinkage, similarity

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        self._neighbours = fit_neighbours(
            user_idx, item_idx, num_users, num_items, self.num_neighbours, self.shrinkage, self.similarity
        )

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        scores = np.zeros((len(histories), len(self._neighbours)), np.float32)
        for row, history in enumerate(histories):
            scores[row] = self._neighbours.scores(history)
        return scores


class LastItem:
    """Likeness to the last choice alone, for streams in which only the present mood counts. Costs as ItemKNN."""

    def __init__(self, num_neighbours: int = 200, shrinkage: float = 0.0, similarity: str = "cosine") -> None:
        self._neighbours = ItemKNN(num_neighbours, shrinkage, similarity)

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        self._neighbours.fit(user_idx, item_idx, at_seconds, num_users, num_items)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return self._neighbours.score([history[-1:] for history in histories])
