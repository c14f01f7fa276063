"""What users say of items that nobody chose yet: what they say of items with like content, by kernel ridge regression.

A map from content to behaviour (Gantner et al., Learning Attribute-to-Feature Mappings for Cold-Start Recommendations,
2010), here to the columns of a table of neighbours. How much each kind of content counts is chosen by leaving each
known item out, which kernel ridge regression has in closed form.

Dimension key: N catalogue, W known items, C cold items, V kinds of content, S sampled users, D vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from avrec_ray.retrieval.neighbours import ItemNeighbours, Rows, by_watched, largest

Matrix = npt.NDArray[np.float64]
MAX_KNOWN = 4096
"""Known items that cold ones are compared with, those of most choices; the cost grows with the cube."""
MAX_LEFT_OUT = 2048
"""Known items on which weights are chosen."""
MAX_USERS = 512
"""Users by whose scores an error is measured."""
_COLD_AT_ONCE = 1024
_WEIGHTS = (0.0, 0.3, 1.0, 3.0)
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True, eq=False)
class ContentView:
    """One kind of content: a vector an item, zeros where it has none, and how alike two of them are."""

    name: str
    vectors: npt.NDArray[np.floating]
    """[N, D]; of a time, [N, 1], NaN where unknown."""
    kind: str = "dense"
    """words: cosine; dense: exp(2 cos - 2) of what differs from the mean; time: exp(-|difference| / usual one)."""

    def kernel(self, rows: Rows, columns: Rows) -> Matrix:
        """[rows, columns], 1 for an item with itself, 0 where either has no such content."""
        if self.kind == "time":
            times = self.vectors[:, 0].astype(np.float64)
            return time_kernel(times[rows], times[columns], self.time_scale)
        cosine = self.directions(rows) @ self.directions(columns).T
        if self.kind == "words":
            return np.asarray(cosine)
        told = self._told
        return dense_kernel(cosine, told[rows], told[columns])

    def directions(self, rows: Rows | slice = slice(None)) -> Matrix:
        """Unit vectors [rows, D], dense ones of what differs from the mean; zeros where nothing is told."""
        return unit_rows(self.vectors[rows] - self.mean, self._told[rows])

    @property
    def mean(self) -> npt.NDArray[np.floating]:
        """[D]: what dense vectors have in common, which is taken off them; zeros for the other kinds."""
        told = self._told
        if self.kind != "dense" or not told.any():
            return np.zeros(self.vectors.shape[1], np.float32)
        return np.asarray(self.vectors.mean(0, where=told[:, None]))

    @property
    def time_scale(self) -> float:
        """The usual difference of a time from the median."""
        times = self.vectors[:, 0].astype(np.float64)
        return max(float(np.nanmedian(np.abs(times - np.nanmedian(times)))), 1e-9)

    @property
    def _told(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.any(self.vectors, axis=1), np.bool_)


def time_kernel(rows: Matrix, columns: Matrix, scale: float) -> Matrix:
    """[rows, columns] of times; 0 where one is unknown."""
    return np.nan_to_num(np.exp(-np.abs(rows[:, None] - columns[None, :]) / scale))


def dense_kernel(cosine: Matrix, rows_told: npt.NDArray[np.bool_], columns_told: npt.NDArray[np.bool_]) -> Matrix:
    """[rows, columns] from cosines; 0 where either tells nothing."""
    return np.asarray(np.exp(2 * cosine - 2) * rows_told[:, None] * columns_told[None, :])


def unit_rows(vectors: npt.NDArray[np.floating], told: npt.NDArray[np.bool_]) -> Matrix:
    """Rows at length 1; zeros where nothing is told."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = told[:, None] & (norms > 0)
    return np.divide(vectors, norms, out=np.zeros(vectors.shape, np.float64), where=kept)


@dataclass(frozen=True)
class ContentWeights:
    """How much each kind of content counts, by name, and the ridge; what leaving out found best."""

    views: dict[str, float]
    ridge: float
    error: float
    """Mean squared error of the scores of left-out items; 1 is that of knowing nothing of their content."""

    def kernel(self, views: Sequence[ContentView], rows: Rows, columns: Rows) -> Matrix:
        """How alike items are in all that counts."""
        used = {view.name: view.kernel(rows, columns) for view in views if self.views[view.name]}
        return joined(used, self.views) if used else np.zeros((len(rows), len(columns)))


def joined(kernels: Mapping[str, Matrix], weights: Mapping[str, float]) -> Matrix:
    """The weighted mean of kernels, squared: pairs of likenesses count, as being a comedy and of the same years.

    At most 1, and positive semidefinite as each of them is (Schur's product theorem). Zeros where no kernel has weight.
    """
    total = sum(weights[name] for name in kernels)
    if not total:
        return np.zeros_like(next(iter(kernels.values())))
    mean: Matrix = sum(
        (weights[name] / total * kernel for name, kernel in kernels.items() if weights[name]), np.array(0.0)
    )
    return mean**2


def choose_weights(views: Sequence[ContentView], known: Rows, scores_SW: Matrix, seed: int = 0) -> ContentWeights:
    """The weights of views and ridge with the least error on left-out known items, one changed at a time, twice round.

    The ridge first: content that tells little errs more than nothing does until its ridge is large, and would be lost.

    Args:
        known: rows of the catalogue that users chose.
        scores_SW: what a table of neighbours says of each of them for some users.
    """
    picked = np.sort(np.random.default_rng(seed).permutation(len(known))[:MAX_LEFT_OUT])
    rows, targets_WS = known[picked], scores_SW[:, picked].T
    kernels = {view.name: view.kernel(rows, rows) for view in views}
    alike = dict.fromkeys(kernels, 1.0)
    best = min((_left_out(kernels, alike, ridge, targets_WS) for ridge in _RIDGES), key=lambda each: each.error)
    for _ in range(2):
        before = best
        for name in kernels:
            others = [{**best.views, name: weight} for weight in _WEIGHTS if weight != best.views[name]]
            tries = [_left_out(kernels, weights, best.ridge, targets_WS) for weights in others]
            best = min([best, *tries], key=lambda each: each.error)
        tries = [_left_out(kernels, best.views, ridge, targets_WS) for ridge in _RIDGES if ridge != best.ridge]
        best = min([best, *tries], key=lambda each: each.error)
        if best is before:
            break
    return best


def _left_out(
    kernels: dict[str, Matrix], weights: dict[str, float], ridge: float, targets_WS: Matrix
) -> ContentWeights:
    """The error of each item's prediction from all others: residual i is (A^-1 Y)_i / (A^-1)_ii (Allen's PRESS)."""
    centred = targets_WS - targets_WS.mean(0)
    matrix = ridge * np.eye(len(centred)) + joined(kernels, weights)
    inverse = inverse_of(matrix)
    residuals = inverse @ centred / np.diag(inverse)[:, None]
    return ContentWeights(weights, ridge, float((residuals**2).mean() / max((centred**2).mean(), 1e-30)))


def inverse_of(matrix: Matrix) -> Matrix:
    """Of a symmetric positive definite matrix, by Cholesky: half the time of a general inverse.

    Raises:
        np.linalg.LinAlgError: it is not positive definite; a ridge makes it so.
    """
    factor, failed = lapack.dpotrf(matrix, lower=1)
    if failed:
        raise np.linalg.LinAlgError(f"the kernel of {len(matrix)} items is not positive definite")
    lower, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(np.tril(lower) + np.tril(lower, -1).T)


def sampled_scores(table: ItemNeighbours, histories: Sequence[Rows], known: Rows, seed: int = 0) -> Matrix:
    """[S, W]: what the table says of each known item for some of the users."""
    picked = np.random.default_rng(seed).permutation(len(histories))[:MAX_USERS]
    return np.stack([table.scores(histories[user])[known].astype(np.float64) for user in picked])


def known_rows(counts: Rows) -> Rows:
    """Rows of the items that cold ones are compared with, ascending: those of most choices."""
    return np.sort(np.argsort(-counts, kind="stable")[: min(MAX_KNOWN, int((counts > 0).sum()))])


def with_cold_items(
    table: ItemNeighbours, views: Sequence[ContentView], weights: ContentWeights, counts: Rows, num_neighbours: int
) -> ItemNeighbours:
    """The table with neighbours for items that nobody chose, `num_neighbours` each, as their content tells.

    Args:
        counts: choices of each item, [N].
    """
    known = known_rows(counts)
    cold = np.flatnonzero(counts == 0)
    if not len(known) or not len(cold) or not num_neighbours:
        return table
    said = sparse.csr_matrix((table.weights, table.items, table.starts), shape=(len(table), len(table))).tocsc()
    mean_N = np.asarray(said[:, known].mean(1)).ravel()
    matrix = weights.kernel(views, known, known) + weights.ridge * np.eye(len(known))
    inverse = inverse_of(matrix)
    of_known = said[:, known]
    columns = [_column(said, item) for item in np.flatnonzero(counts > 0).tolist()]
    for start in range(0, len(cold), _COLD_AT_ONCE):
        chunk = cold[start : start + _COLD_AT_ONCE]
        for item, share_W in zip(chunk.tolist(), weights.kernel(views, chunk, known) @ inverse, strict=True):
            said_N = of_known @ share_W + (1.0 - share_W.sum()) * mean_N
            said_N[item] = 0.0
            columns.append(largest(said_N, item, num_neighbours))
    return by_watched(columns, len(table), table.recency)


def _column(said: sparse.csc_matrix, item: int) -> tuple[Rows, int, Matrix]:
    span = slice(said.indptr[item], said.indptr[item + 1])
    return said.indices[span].astype(np.int64), item, said.data[span].astype(np.float64)
