"""EASE in closed form: how much a choice of one item speaks for another, all items considered together.

Dimension key: U users, N catalogue.
"""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from avrec_ray.errors import ConfigError

Matrix = npt.NDArray[np.float32]
_BLOCK = 256


def ease_weights(chosen: sparse.csr_matrix, regularization: float, max_bytes: int) -> Matrix:
    """B [N, N] of the embarrassingly shallow autoencoder (Steck, WWW 2019), with a diagonal of zeros.

    B minimises |X - X B|^2 + regularization |B|^2, X [U, N] the choices: with P = (X'X + regularization I)^-1 it is
    B_ij = -P_ij / P_jj off the diagonal. Memory 4 N^2 bytes, time N^3.

    Raises:
        ConfigError: the matrix of the catalogue is larger than `max_bytes`, or not positive definite.
    """
    num_items = chosen.shape[1]
    num_bytes = 4 * num_items**2
    if num_bytes > max_bytes:
        raise ConfigError(
            f"ease: {num_items} items need a matrix of {num_bytes:,} bytes, expected at most max_bytes="
            f"{max_bytes:,}; raise it, drop rare items, or do without EASE"
        )
    gram = _gram(chosen)
    gram[np.diag_indices(num_items)] += regularization
    return _weights(gram)


def _gram(chosen: sparse.csr_matrix) -> Matrix:
    """X'X in column order, some columns at a time: the sparse product would need three times its memory."""
    num_items = chosen.shape[1]
    gram = np.zeros((num_items, num_items), np.float32, order="F")
    columns = chosen.tocsc()
    for start in range(0, num_items, _BLOCK):
        block = columns[:, start : start + _BLOCK]
        gram[:, start : start + block.shape[1]] = (chosen.T @ block).toarray()
    return gram


def _weights(gram: Matrix) -> Matrix:
    """B of a regularised Gram matrix, in the memory of the latter. Cholesky, since it is positive definite."""
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    if failed:
        raise ConfigError("ease: the matrix of choices is not positive definite; raise the regularization")
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    for column in range(len(inverse)):  # only the lower triangle is written; P is symmetric
        inverse[column, column + 1 :] = inverse[column + 1 :, column]
    inverse /= -np.diag(inverse).copy()
    np.fill_diagonal(inverse, 0.0)
    return np.asarray(inverse, np.float32)
