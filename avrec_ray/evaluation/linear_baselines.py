"""EASE: a linear model from a history to all items, solved in closed form.

Dimension key: U users, N catalogue.
"""

from collections.abc import Sequence

import numpy as np

from avrec_ray.dataclass_io import check_range
from avrec_ray.evaluation.choices import Rows, Scores, Times, choice_matrix, history_matrix
from avrec_ray.retrieval.ease import ease_weights


class EASE:
    """Embarrassingly shallow autoencoder, see `ease_weights`.

    Memory 4 N^2 bytes, held to `max_bytes` (the default takes 16,384 items); time N^3. The default of `regularization`
    is the best of ten, 50 to 3000, for NDCG@10 on the valid part of MovieLens 100K, leave one out.
    """

    def __init__(self, regularization: float = 100.0, max_bytes: int = 2**30) -> None:
        check_range("ease.regularization", regularization, 1e-6)
        self.regularization, self.max_bytes = regularization, max_bytes

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline.

        Raises:
            ConfigError: the matrix of the catalogue is larger than `max_bytes`.
        """
        chosen = choice_matrix(user_idx, item_idx, num_users, num_items)
        self._weights = ease_weights(chosen, self.regularization, self.max_bytes)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.asarray(history_matrix(histories, len(self._weights)) @ self._weights, np.float32)
