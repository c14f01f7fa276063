"""EASE: a linear model from a history to all items, solved in closed form.

Dimension key: U users, N catalogue.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from avrec_ray.dataclass_io import check_range
from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.choices import Rows, Scores, Times, choice_matrix, history_matrix

_BLOCK = 256


class EASE:
    """Embarrassingly shallow autoencoder (Steck, WWW 2019): item weights B [N, N] with a diagonal of zeros.

    B minimises |X - X B|^2 + regularization |B|^2, X [U, N] the choices: with P = (X'X + regularization I)^-1 it is
    B_ij = -P_ij / P_jj off the diagonal. Memory 4 N^2 bytes, held to `max_bytes` (the default takes 16,384 items); time
    N^3. The default of `regularization` is the best of ten, 50 to 3000, for NDCG@10 on the valid part of MovieLens
    100K, leave one out.
    """

    def __init__(self, regularization: float = 100.0, max_bytes: int = 2**30) -> None:
        check_range("ease.regularization", regularization, 1e-6)
        self.regularization, self.max_bytes = regularization, max_bytes

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline.

        Raises:
            ConfigError: the matrix of the catalogue is larger than `max_bytes`.
        """
        num_bytes = 4 * num_items**2
        if num_bytes > self.max_bytes:
            raise ConfigError(
                f"ease: {num_items} items need a matrix of {num_bytes:,} bytes, expected at most max_bytes="
                f"{self.max_bytes:,}; raise it, drop rare items, or leave this baseline out"
            )
        gram = _gram(choice_matrix(user_idx, item_idx, num_users, num_items))
        gram[np.diag_indices(num_items)] += self.regularization
        self._weights = _weights(gram)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.asarray(history_matrix(histories, len(self._weights)) @ self._weights, np.float32)


def _gram(chosen: sparse.csr_matrix) -> Scores:
    """X'X in column order, some columns at a time: the sparse product would need three times its memory."""
    num_items = chosen.shape[1]
    gram = np.zeros((num_items, num_items), np.float32, order="F")
    columns = chosen.tocsc()
    for start in range(0, num_items, _BLOCK):
        block = columns[:, start : start + _BLOCK]
        gram[:, start : start + block.shape[1]] = (chosen.T @ block).toarray()
    return gram


def _weights(gram: Scores) -> Scores:
    """B of a regularised Gram matrix, in the memory of the latter. Cholesky, since it is positive definite."""
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    if failed:
        raise ConfigError("ease: the matrix of choices is not positive definite; raise ease.regularization")
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    for column in range(len(inverse)):  # only the lower triangle is written; P is symmetric
        inverse[column, column + 1 :] = inverse[column + 1 :, column]
    inverse /= -np.diag(inverse).copy()
    np.fill_diagonal(inverse, 0.0)
    return np.asarray(inverse, np.float32)
