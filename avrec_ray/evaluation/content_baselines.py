"""Baselines that read what items are: they rank an item that nobody chose yet.

Dimension key: U users, N catalogue, D vector.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.choices import Rows, Scores, Times, history_matrix


class ContentNeighbours:
    """Items near the mean of what you chose: dot product with the mean of the history's unit vectors, in [-1, 1].

    A vector of zeros says nothing about its item, which then stands last. Vectors that share a direction tell little
    apart: subtract each modality's mean before joining them. Memory N x D.
    """

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        """`vectors` [N, D] of any length, row = `item_idx`.

        Raises:
            ConfigError: not a matrix, or a value that is not finite.
        """
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ConfigError(
                f"content_knn: got vectors of shape {vectors.shape}, expected finite [items, dimension]; "
                "give zeros for an item without content"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._unit = np.divide(vectors, norms, out=np.zeros(vectors.shape, np.float32), where=norms > 0)
        self._known = norms[:, 0] > 0

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline. Learns nothing from choices.

        Raises:
            ConfigError: another number of items than vectors.
        """
        if num_items != len(self._unit):
            raise ConfigError(
                f"content_knn: got {len(self._unit)} vectors, expected {num_items}, one an item in catalogue order"
            )

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        chosen = history_matrix(histories, len(self._unit))
        chosen = chosen[:, self._known]
        counts = np.asarray(chosen.sum(axis=1))
        means = (chosen @ self._unit[self._known]) / np.maximum(counts, 1)
        scores = np.asarray(means @ self._unit.T, np.float32)
        scores[np.ix_(counts[:, 0] > 0, ~self._known)] = -1.0
        return scores
