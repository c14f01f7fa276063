"""Neighbourhood baselines: items that the same users chose.

Dimension key: U users, N catalogue.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avrec_ray.evaluation.choices import Rows, Scores, Times
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.retrieval.neighbours import fit_neighbours


class ItemKNN:
    """Items that users who chose what you chose chose too: for each item, summed, how like your choices it is.

    Settings are those of `NeighbourConfig`. Only the `num_neighbours` nearest of the item that is scored count. Memory
    N x num_neighbours; time the sum over users of their squared number of choices.
    """

    def __init__(self, num_neighbours: int = 200, **settings: Any) -> None:
        self.cfg = NeighbourConfig(num_neighbours=num_neighbours, **settings)

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        order = np.argsort(at_seconds, kind="stable")
        self._neighbours = fit_neighbours(user_idx[order], item_idx[order], num_users, num_items, self.cfg)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        scores = np.zeros((len(histories), len(self._neighbours)), np.float32)
        for row, history in enumerate(histories):
            scores[row] = self._neighbours.scores(history)
        return scores


class LastItem(ItemKNN):
    """Likeness to the last choice alone, for streams in which only the present mood counts. Costs as ItemKNN."""

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return super().score([history[-1:] for history in histories])


class RP3beta(ItemKNN):
    """Random walks from your choices over users to items, popular ones held back by `scored_power` (Paudel et al.,
    Updatable, Accurate, Diverse, and Scalable Recommendations for Interactive Applications, 2017).
    """

    def __init__(self, scored_power: float = 0.5, num_neighbours: int = 200, **settings: Any) -> None:
        settings = {"user_power": 1.0, "watched_power": 1.0, **settings}
        super().__init__(num_neighbours, scored_power=scored_power, **settings)


class SessionKNN(ItemKNN):
    """ItemKNN by what was chosen shortly before or after, asked with the newest choices (Ludewig & Jannach,
    Evaluation of Session-based Recommendation Algorithms, 2018).
    """

    def __init__(
        self, step_decay: float = 0.9, recency: float = 0.8, num_neighbours: int = 200, **settings: Any
    ) -> None:
        super().__init__(num_neighbours, step_decay=step_decay, recency=recency, **settings)
