"""Learning kinds of users by expectation maximisation, see `user_classes`.

The first rounds hold every user to be of several classes (deterministic annealing: Ueda and Nakano, 1998). Where it
ends depends on the random tastes that it began with all the same, so the classes of several fits are pooled as one
mixture.

Dimension key: U users, N items, K classes, D numbers an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from threadpoolctl import threadpool_limits

from avrec_ray.ranking.config import ClassesConfig
from avrec_ray.ranking.user_classes import ClassTastes, choice_weights
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns

Floats = npt.NDArray[np.float64]

MAX_USERS = 8192
"""Users that classes are learned from, drawn at random where there are more."""
MAX_ITEMS = 8192
"""Items that they are learned from, those chosen most often."""
STEPS_A_ROUND = 10
"""Of the solver that improves tastes, which begins at those of the round before."""
USERS_A_CLASS = 8
"""At least so many users for each class: of fewer nothing can be learned."""
PSEUDO_CHOICES = 2.0
"""Added to how often each item was chosen."""


def fit_classes(
    columns: EventColumns, vectors: npt.NDArray[np.floating], cfg: ClassesConfig, seed: int = 0
) -> ClassTastes:
    """Learn `cfg.num_starts` times `cfg.num_classes` classes, or fewer of few users, from what users chose.

    In one thread: the matrices are small, so that several wait for each other more than they work.

    Args:
        vectors: [N, D] of the catalogue. What they have in common, and in which unit they are, does not matter.

    Returns:
        Tastes for these vectors; no class at all where vectors do not differ or nobody chose anything.
    """
    choices_UN = choice_matrix(columns, len(vectors), seed)
    mean_D, scale = vectors.mean(0, dtype=np.float64), 0.0
    if choices_UN.nnz:
        scale = float(np.sqrt(((vectors - mean_D) ** 2).sum(1).mean()))
    if scale < 1e-6 or not cfg.num_classes:
        nothing = np.zeros(0, np.float32)
        return ClassTastes(np.zeros((0, vectors.shape[1]), np.float32), nothing, nothing, cfg.evidence, cfg.recency)
    items = _most_chosen(choices_UN)
    unit_ND = (vectors[items].astype(np.float64) - mean_D) / scale
    choices_UM = choices_UN[:, items].tocsr()
    cfg = replace(cfg, num_classes=min(cfg.num_classes, max(1, choices_UM.shape[0] // USERS_A_CLASS)))
    with threadpool_limits(1, "blas"):
        found = [_Fit(choices_UM, unit_ND, cfg, [seed, 6, start]).run() for start in range(cfg.num_starts)]
    tastes_KD = np.concatenate([fit.tastes_KD for fit in found]) / scale
    offsets_K = np.concatenate([fit.log_norms_K for fit in found]) + tastes_KD @ mean_D
    shares_K = np.concatenate([fit.shares_K for fit in found]) / cfg.num_starts
    tastes, offsets, shares = (array.astype(np.float32) for array in (tastes_KD, offsets_K, shares_K))
    return ClassTastes(tastes, offsets, shares, cfg.evidence, cfg.recency)


def choice_matrix(columns: EventColumns, num_items: int, seed: int) -> sparse.csr_matrix:
    """[U, N]: what each choice counts; of at most MAX_USERS users who chose anything."""
    is_choice = np.isin(columns.event, POSITIVE_CODES)
    user_idx = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))[is_choice]
    pair, place = np.unique(user_idx * num_items + columns.item_idx[is_choice], return_inverse=True)
    weights = np.zeros(len(pair))
    np.maximum.at(weights, place, choice_weights(columns.watch_ratio[is_choice]))
    users, row = np.unique(pair // num_items, return_inverse=True)
    matrix = sparse.csr_matrix((weights, (row, pair % num_items)), shape=(len(users), num_items))
    if len(users) <= MAX_USERS:
        return matrix
    return matrix[np.sort(np.random.default_rng([seed, 5]).permutation(len(users))[:MAX_USERS])]


def _most_chosen(choices_UN: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    if choices_UN.shape[1] <= MAX_ITEMS:
        return np.arange(choices_UN.shape[1])
    return np.sort(np.argsort(-np.asarray(choices_UN.sum(0)).ravel(), kind="stable")[:MAX_ITEMS])


@dataclass(frozen=True, eq=False)
class _Found:
    tastes_KD: Floats
    log_norms_K: Floats
    shares_K: Floats


class _Fit:
    """One run of expectation maximisation."""

    def __init__(self, choices_UN: sparse.csr_matrix, unit_ND: Floats, cfg: ClassesConfig, seed: Sequence[int]) -> None:
        self._choices_UN, self._unit_ND, self._cfg = choices_UN, unit_ND, cfg
        counts_N = np.asarray(choices_UN.sum(0)).ravel() + PSEUDO_CHOICES
        self._log_popularity_N = np.log(counts_N / counts_N.sum())
        shape = (cfg.num_classes, unit_ND.shape[1])
        self._tastes_KD = np.random.default_rng(seed).normal(size=shape)
        self._shares_K = np.full(cfg.num_classes, 1 / cfg.num_classes)

    def run(self) -> _Found:
        """Rounds of: whose user is it, then what do its users choose."""
        for number in range(self._cfg.rounds):
            evidence = self._cfg.evidence * min(1.0, (1 + 2 * number) / self._cfg.rounds)
            members_UK = self._members(evidence)
            self._shares_K = (members_UK.sum(0) + 1) / (len(members_UK) + len(self._shares_K))
            self._tastes_KD = self._fit_tastes(np.asarray((self._choices_UN.T @ members_UK).T))
        return _Found(self._tastes_KD, self._log_norms(self._log_odds()), self._shares_K)

    def _members(self, evidence: float) -> Floats:
        log_odds_KN = self._log_odds()
        lift_KN = log_odds_KN - self._log_norms(log_odds_KN)[:, None]
        told_UK = np.asarray(self._choices_UN @ lift_KN.T)
        return np.asarray(softmax(np.log(self._shares_K) + evidence * told_UK, axis=1))

    def _log_odds(self) -> Floats:
        return np.asarray(self._tastes_KD @ self._unit_ND.T)

    def _log_norms(self, log_odds_KN: Floats) -> Floats:
        return np.asarray(logsumexp(log_odds_KN + self._log_popularity_N, axis=1))

    def _fit_tastes(self, chosen_KN: Floats) -> Floats:
        """Tastes [K, D] under which what each class chose is likelier; the sum over classes of a convex problem."""
        shape, total_K = self._tastes_KD.shape, chosen_KN.sum(1)

        def loss(flat: Floats) -> tuple[float, Floats]:
            tastes_KD = flat.reshape(shape)
            log_share_KN = log_softmax(tastes_KD @ self._unit_ND.T + self._log_popularity_N, axis=1)
            excess_KN = np.exp(log_share_KN) * total_K[:, None] - chosen_KN
            value = -(chosen_KN * log_share_KN).sum() + 0.5 * self._cfg.ridge * (tastes_KD**2).sum()
            return float(value), (excess_KN @ self._unit_ND + self._cfg.ridge * tastes_KD).ravel()

        options = {"maxiter": STEPS_A_ROUND}
        found = minimize(loss, self._tastes_KD.ravel(), jac=True, method="L-BFGS-B", options=options)
        return np.asarray(found.x).reshape(shape)
