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
from avrec_ray.ranking.user_classes import ClassTastes, WatchLines, choice_weights, watch_logits
from avrec_ray.ranking.watch_lines import LinesFit, Watched
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
    told = tell_users(columns, len(vectors), seed)
    mean_D, scale = vectors.mean(0, dtype=np.float64), 0.0
    if told.choices_UN.nnz:
        scale = float(np.sqrt(((vectors - mean_D) ** 2).sum(1).mean()))
    if scale < 1e-6 or not cfg.num_classes:
        return no_classes(vectors.shape[1], cfg)
    items = _most_chosen(told.choices_UN)
    unit_ND = (vectors[items].astype(np.float64) - mean_D) / scale
    told = told.of_items(items)
    cfg = replace(cfg, num_classes=min(cfg.num_classes, max(1, told.choices_UN.shape[0] // USERS_A_CLASS)))
    with threadpool_limits(1, "blas"):
        found = [_Fit(told, unit_ND, cfg, [seed, 6, start]).run() for start in range(cfg.num_starts)]
    return _pooled(found, mean_D, scale, cfg)


def no_classes(dim: int, cfg: ClassesConfig) -> ClassTastes:
    """Nothing learned, of vectors of `dim` numbers."""
    nothing = np.zeros(0, np.float32)
    lines = WatchLines(nothing, nothing, 1.0, cfg.watch_evidence)
    return ClassTastes(np.zeros((0, dim), np.float32), nothing, nothing, cfg.evidence, cfg.recency, lines)


def _pooled(found: "Sequence[_Found]", mean_D: Floats, scale: float, cfg: ClassesConfig) -> ClassTastes:
    """One mixture of several fits, for vectors as they were given."""
    tastes_KD = np.concatenate([fit.tastes_KD for fit in found]) / scale
    log_norms_K = np.concatenate([fit.log_norms_K for fit in found])
    slopes_K = np.concatenate([fit.lines.slopes_K for fit in found])
    intercepts_K = np.concatenate([fit.lines.intercepts_K for fit in found]) + slopes_K * log_norms_K
    shares_K = np.concatenate([fit.shares_K for fit in found]) / len(found)
    arrays = (tastes_KD, log_norms_K + tastes_KD @ mean_D, shares_K, intercepts_K, slopes_K)
    tastes, offsets, shares, intercepts, slopes = (array.astype(np.float32) for array in arrays)
    deviation = float(np.sqrt(np.mean([fit.variance for fit in found])))
    lines = WatchLines(intercepts, slopes, deviation, cfg.watch_evidence)
    return ClassTastes(tastes, offsets, shares, cfg.evidence, cfg.recency, lines)


@dataclass(frozen=True, eq=False)
class ToldByUsers:
    """What is known of the users that classes are learned from, over the catalogue."""

    choices_UN: sparse.csr_matrix
    """What each choice counts."""
    watched: Watched

    def of_items(self, items: npt.NDArray[np.int64]) -> "ToldByUsers":
        """The same of `items` alone."""
        known_UN, logits_UN = (part[:, items].tocsr() for part in (self.watched.known_UN, self.watched.logits_UN))
        return ToldByUsers(self.choices_UN[:, items].tocsr(), Watched(known_UN, logits_UN))


def tell_users(columns: EventColumns, num_items: int, seed: int) -> ToldByUsers:
    """Of at most MAX_USERS users who chose anything."""
    is_choice = np.isin(columns.event, POSITIVE_CODES)
    user_idx = np.repeat(np.arange(len(columns.user_ids)), np.diff(columns.starts))
    users = np.unique(user_idx[is_choice])
    if len(users) > MAX_USERS:
        users = np.sort(np.random.default_rng([seed, 5]).permutation(users)[:MAX_USERS])
    row_of = np.full(len(columns.user_ids), -1)
    row_of[users] = np.arange(len(users))
    pair = row_of[user_idx] * num_items + columns.item_idx
    shape = (len(users), num_items)
    choices = np.flatnonzero(is_choice & (pair >= 0))
    chosen, place = np.unique(pair[choices], return_inverse=True)
    weights = np.zeros(len(chosen))
    np.maximum.at(weights, place, choice_weights(columns.watch_ratio[choices]))
    newest_first = np.flatnonzero(~np.isnan(columns.watch_ratio) & (pair >= 0))[::-1]
    seen, newest = np.unique(pair[newest_first], return_index=True)
    logits = watch_logits(columns.watch_ratio[newest_first[newest]])
    known_UN, logits_UN = (_matrix(values, seen, shape) for values in (np.ones(len(seen)), logits))
    return ToldByUsers(_matrix(weights, chosen, shape), Watched(known_UN, logits_UN))


def _matrix(values: Floats, pair: npt.NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((values, (pair // shape[1], pair % shape[1])), shape=shape)


def _most_chosen(choices_UN: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    if choices_UN.shape[1] <= MAX_ITEMS:
        return np.arange(choices_UN.shape[1])
    return np.sort(np.argsort(-np.asarray(choices_UN.sum(0)).ravel(), kind="stable")[:MAX_ITEMS])


@dataclass(frozen=True, eq=False)
class _Found:
    tastes_KD: Floats
    log_norms_K: Floats
    shares_K: Floats
    lines: LinesFit
    variance: float


class _Fit:
    """One run of expectation maximisation."""

    def __init__(self, told: ToldByUsers, unit_ND: Floats, cfg: ClassesConfig, seed: Sequence[int]) -> None:
        self._told, self._unit_ND, self._cfg = told, unit_ND, cfg
        counts_N = np.asarray(told.choices_UN.sum(0)).ravel() + PSEUDO_CHOICES
        self._log_popularity_N = np.log(counts_N / counts_N.sum())
        shape = (cfg.num_classes, unit_ND.shape[1])
        self._tastes_KD = np.random.default_rng(seed).normal(size=shape)
        self._shares_K = np.full(cfg.num_classes, 1 / cfg.num_classes)
        self._lines, self._variance = LinesFit.flat(cfg.num_classes), 1.0

    def run(self) -> _Found:
        """Rounds of: whose user is it, then what do its users choose, and how long do they watch."""
        for number in range(self._cfg.rounds):
            members_UK = self._members(min(1.0, (1 + 2 * number) / self._cfg.rounds))
            self._shares_K = (members_UK.sum(0) + 1) / (len(members_UK) + len(self._shares_K))
            self._improve(members_UK)
        log_norms_K = self._log_norms(self._log_odds())
        return _Found(self._tastes_KD, log_norms_K, self._shares_K, self._lines, self._variance)

    def _members(self, part: float) -> Floats:
        """[U, K]: probability of each class, when evidence counts this part of what it will."""
        log_odds_KN = self._log_odds()
        lift_KN = log_odds_KN - self._log_norms(log_odds_KN)[:, None]
        told_UK = self._cfg.evidence * np.asarray(self._told.choices_UN @ lift_KN.T)
        watched_UK = self._told.watched.log_likelihood(self._lines, log_odds_KN, self._variance)
        told_UK += self._cfg.watch_evidence * watched_UK
        return np.asarray(softmax(np.log(self._shares_K) + part * told_UK, axis=1))

    def _log_odds(self) -> Floats:
        return np.asarray(self._tastes_KD @ self._unit_ND.T)

    def _log_norms(self, log_odds_KN: Floats) -> Floats:
        return np.asarray(logsumexp(log_odds_KN + self._log_popularity_N, axis=1))

    def _improve(self, members_UK: Floats) -> None:
        """Tastes [K, D] under which what each class chose, and how long it watched, is likelier."""
        chosen_KN = np.asarray((self._told.choices_UN.T @ members_UK).T)
        watched = self._told.watched.of_classes(members_UK)
        shape, total_K = self._tastes_KD.shape, chosen_KN.sum(1)
        ridge, strength = self._cfg.ridge, self._cfg.watch_weight / self._variance

        def loss(flat: Floats) -> tuple[float, Floats]:
            tastes_KD = flat.reshape(shape)
            odds_KN = tastes_KD @ self._unit_ND.T
            log_share_KN = log_softmax(odds_KN + self._log_popularity_N, axis=1)
            lines = watched.lines(odds_KN)
            excess_KN = np.exp(log_share_KN) * total_K[:, None] - chosen_KN
            excess_KN += strength * watched.error_slopes(lines, odds_KN)
            value = -(chosen_KN * log_share_KN).sum() + 0.5 * strength * lines.squared_error
            value += 0.5 * ridge * (tastes_KD**2).sum()
            return float(value), (excess_KN @ self._unit_ND + ridge * tastes_KD).ravel()

        options = {"maxiter": STEPS_A_ROUND}
        found = minimize(loss, self._tastes_KD.ravel(), jac=True, method="L-BFGS-B", options=options)
        self._tastes_KD = np.asarray(found.x).reshape(shape)
        self._lines = watched.lines(self._log_odds())
        self._variance = watched.variance(self._lines)
