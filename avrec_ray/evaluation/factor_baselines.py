"""Matrix factorisation by `implicit`, on the CPU. Users are given by histories, so new ones need no refit.

`num_threads` is 1 by default: several fits in Ray tasks then share a machine without fighting for it. Memory
4 F (U + N) bytes.

Dimension key: U users, N catalogue, F factors.
"""

from collections.abc import Sequence

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy import sparse
from threadpoolctl import threadpool_limits

from avrec_ray.dataclass_io import check_range
from avrec_ray.evaluation.choices import Rows, Scores, Times, choice_matrix, history_matrix

_RIDGE = 0.01


class IALS:
    """Weighted least squares of all user and item pairs (Hu, Koren, Volinsky, ICDM 2008).

    A choice has weight `alpha` and target 1, all other pairs weight 1 and target 0. A user's factors are solved anew
    from the history, with the items' factors held. The defaults are the best of 36 settings, the six nearest over four
    seeds, for NDCG@10 on the valid part of MovieLens 100K, leave one out.
    """

    def __init__(
        self,
        num_factors: int = 128,
        regularization: float = 10.0,
        alpha: float = 1.0,
        num_iterations: int = 15,
        seed: int = 0,
        num_threads: int = 1,
    ) -> None:
        _check("ials", num_factors, num_iterations, num_threads)
        self._model: AlternatingLeastSquares | None = None
        self._settings = {
            "factors": num_factors,
            "regularization": regularization,
            "alpha": alpha,
            "iterations": num_iterations,
            "random_state": seed,
            "num_threads": num_threads,
        }

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        chosen = choice_matrix(user_idx, item_idx, num_users, num_items)
        self._num_items, self._model = num_items, None
        if chosen.nnz:
            with threadpool_limits(1, "blas"):
                self._model = AlternatingLeastSquares(**self._settings)
                self._model.fit(chosen, show_progress=False)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline. All zero for an empty history."""
        if self._model is None or not histories:
            return np.zeros((len(histories), self._num_items), np.float32)
        with threadpool_limits(1, "blas"):
            return np.asarray(self.user_factors(histories) @ self.item_factors().T, np.float32)

    def item_factors(self) -> Scores:
        """Float32 [N, F] as fitted; near zero for an item that nobody chose.

        Raises:
            ValueError: nothing was fitted, or there were no choices.
        """
        return np.asarray(self._fitted().item_factors, np.float32)

    def user_factors(self, histories: Sequence[Rows]) -> Scores:
        """Float32 [U, F] of users given by what they chose, at least one of them; zeros for an empty history.

        Raises:
            ValueError: as `item_factors`.
        """
        with threadpool_limits(1, "blas"):
            chosen = history_matrix(histories, self._num_items)
            return np.asarray(self._fitted().recalculate_user(np.arange(len(histories)), chosen), np.float32)

    def _fitted(self) -> AlternatingLeastSquares:
        if self._model is None:
            raise ValueError("ials has no factors: expected choices, got none; call fit with some first")
        return self._model


class BPR:
    """Factors that rank a choice before an item not chosen (Rendle et al., UAI 2009), by stochastic gradients.

    The method has no closed form for a user it did not fit. Known and new users are therefore treated alike: their
    factors are predicted from the mean of the factors of their history's items, by a linear map [F, F] that least
    squares fits on the fitted users. On MovieLens 100K this ranks as well as the fitted users' own factors. Fits
    repeat with a single thread only.
    """

    def __init__(
        self,
        num_factors: int = 64,
        learning_rate: float = 0.01,
        regularization: float = 0.01,
        num_iterations: int = 100,
        seed: int = 0,
        num_threads: int = 1,
    ) -> None:
        _check("bpr", num_factors, num_iterations, num_threads)
        self._settings = {
            "factors": num_factors,
            "learning_rate": learning_rate,
            "regularization": regularization,
            "iterations": num_iterations,
            "random_state": seed,
            "num_threads": num_threads,
        }

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        chosen = choice_matrix(user_idx, item_idx, num_users, num_items)
        self._items = np.zeros((num_items, 1), np.float32)
        self._user_of_mean = np.zeros((1, 1), np.float32)
        if chosen.nnz:
            with threadpool_limits(1, "blas"):
                model = BayesianPersonalizedRanking(**self._settings)
                model.fit(chosen, show_progress=False)
                self._items = np.asarray(model.item_factors, np.float32)
                self._user_of_mean = _linear_map(self._means(chosen), model.user_factors)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline. All zero for an empty history."""
        users = self._means(history_matrix(histories, len(self._items))) @ self._user_of_mean
        return np.asarray(users @ self._items.T, np.float32)

    def _means(self, chosen: sparse.csr_matrix) -> Scores:
        """Mean of the items' factors in each row [U, F]; zeros where there is none."""
        return np.asarray(chosen @ self._items / np.maximum(chosen.sum(axis=1), 1), np.float32)


def _linear_map(means: Scores, users: Scores) -> Scores:
    """The map [F, F] with the least squared error from means of items' factors to users' factors, with a small ridge.

    Users without choices have means of zero and do not count.
    """
    gram = means.T @ means + _RIDGE * np.eye(means.shape[1])
    return np.asarray(np.linalg.solve(gram, means.T @ users), np.float32)


def _check(name: str, num_factors: int, num_iterations: int, num_threads: int) -> None:
    check_range(f"{name}.num_factors", num_factors, 1)
    check_range(f"{name}.num_iterations", num_iterations, 1)
    check_range(f"{name}.num_threads", num_threads, 1)
