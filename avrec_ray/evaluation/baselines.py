"""Baselines that every model is shown beside, behind one interface: `fit` on choices, `score` histories.

Here: the interface, those that look at no history, and the registry. item_knn.py, linear_baselines.py,
factor_baselines.py and content_baselines.py hold the others.

Dimension key: E choices, U users, N catalogue, D vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import check_choice
from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.choices import Rows, Scores, Times, distinct_pairs
from avrec_ray.evaluation.content_baselines import ContentNeighbours
from avrec_ray.evaluation.factor_baselines import BPR, IALS
from avrec_ray.evaluation.item_knn import ItemKNN, LastItem, RP3beta, SessionKNN
from avrec_ray.evaluation.linear_baselines import EASE

DAY_SECONDS = 86_400.0


class Baseline(Protocol):
    """What a baseline can do."""

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """Learn from choices: parallel arrays [E], any order; `at_seconds` are POSIX times."""

    def score(self, histories: Sequence[Rows]) -> Scores:
        """Float32 [U, N], higher is better, for users given by the `item_idx` they chose, oldest first.

        Equal scores mean that the baseline has no opinion. Memory is U x N: pass large sets of users in parts.
        """


class Random:
    """A uniform order of the catalogue for each user, independent of all others: what knowing nothing reaches.

    Scores go on from call to call, so that users asked in parts get what they would get at once; `fit` starts anew.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline. Learns the size of the catalogue only."""
        self._num_items, self._rng = num_items, np.random.default_rng(self.seed)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline. Uniform in [0, 1)."""
        return self._rng.random((len(histories), self._num_items), np.float32)


class Popularity:
    """How many users chose each item: the same list for everybody."""

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        _, items = distinct_pairs(user_idx, item_idx, num_items)
        self._counts = np.bincount(items, minlength=num_items).astype(np.float32)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.tile(self._counts, (len(histories), 1))


class RecentPopularity:
    """How often each item was chosen lately: a choice counts half for each `half_life_days` before the newest."""

    def __init__(self, half_life_days: float = 7.0) -> None:
        self.half_life_days = half_life_days

    def fit(self, user_idx: Rows, item_idx: Rows, at_seconds: Times, num_users: int, num_items: int) -> None:
        """See Baseline."""
        age_days = (at_seconds.max(initial=0.0) - at_seconds) / DAY_SECONDS
        weights = 0.5 ** (age_days / self.half_life_days)
        self._counts = np.bincount(item_idx, weights=weights, minlength=num_items).astype(np.float32)

    def score(self, histories: Sequence[Rows]) -> Scores:
        """See Baseline."""
        return np.tile(self._counts, (len(histories), 1))


BASELINES: dict[str, Callable[..., Baseline]] = {
    "random": Random,
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "last_item": LastItem,
    "item_knn": ItemKNN,
    "rp3beta": RP3beta,
    "session_knn": SessionKNN,
    "ease": EASE,
    "ials": IALS,
    "bpr": BPR,
}
"""Every baseline that needs behaviour alone, by its name in metric tables. Called with settings, or with none."""

CONTENT_BASELINES: dict[str, Callable[[npt.NDArray[np.floating]], Baseline]] = {"content_knn": ContentNeighbours}
"""Those that need vectors of the items too, [N, D], by name."""

DRAWING = ("random", "ials", "bpr")
"""Those that take a seed."""


def build_baseline(
    name: str,
    vectors: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
    settings: Mapping[str, float | str] | None = None,
) -> Baseline:
    """One baseline, not yet fitted. `vectors` [N, D] are for CONTENT_BASELINES, `seed` for those that draw.

    Raises:
        ConfigError: no baseline has that name, or it needs vectors.
    """
    check_choice("evaluation.baselines.names", name, [*BASELINES, *CONTENT_BASELINES])
    if name in CONTENT_BASELINES:
        if vectors is None:
            raise ConfigError(f"baseline {name} got no vectors of the items, expected [items, dimension]")
        return CONTENT_BASELINES[name](vectors)
    return BASELINES[name](**(settings or {}), **({"seed": seed} if name in DRAWING else {}))


def build_baselines(vectors: npt.NDArray[np.floating] | None = None, seed: int = 0) -> dict[str, Baseline]:
    """Every baseline with its default settings, by name: those of BASELINES, and with `vectors` CONTENT_BASELINES.

    On a large catalogue take those out that `fit` would refuse: see EASE.max_bytes.

    >>> sorted(set(build_baselines(np.eye(3))) - set(build_baselines()))
    ['content_knn']
    """
    names = [*BASELINES, *(CONTENT_BASELINES if vectors is not None else ())]
    return {name: build_baseline(name, vectors, seed) for name in names}


def rank_in_parts(
    score: Callable[[slice], Scores],
    seen: Sequence[Rows],
    k: int,
    num_items: int,
    candidates: npt.NDArray[np.bool_] | None = None,
    max_values: int = 20_000_000,
) -> Rows:
    """`top_k` of all users, a part of them at a time, so that memory does not grow with users x items.

    Args:
        score: scores [part, N] of the users in a slice.
        max_values: most scores held at once; 20 million are 80 MB.
    """
    size = max(1, max_values // max(num_items, 1))
    parts = [slice(start, min(start + size, len(seen))) for start in range(0, len(seen), size)]
    lists = [top_k(score(part), seen[part], k, candidates, tie_seed=part.start) for part in parts]
    return np.concatenate(lists) if lists else np.full((0, k), -1, np.int64)


def top_k(
    scores: npt.NDArray[np.floating],
    seen: Sequence[Rows],
    k: int,
    candidates: npt.NDArray[np.bool_] | None = None,
    tie_seed: int = 0,
) -> Rows:
    """Lists of the best unseen items, int64 [U, k], -1 where fewer can be listed.

    Equal scores stand in an order drawn for each user. The order of a catalogue often says something (in MovieLens, low
    ids are popular films: by id alone, items hidden from training rank at an AUC of 0.81), and a baseline without an
    opinion would look as if it knew.

    Args:
        scores: [U, N]; an item with a score that is not finite is never listed.
        seen: for each user the `item_idx` to leave out.
        candidates: bool [N]; only these are listed. None: all.
        tie_seed: what the order of equal scores is drawn from, with the row of the user.

    >>> top_k(np.array([[1.0, 3.0, 3.5, 2.0]]), [np.array([2])], k=2).tolist()
    [[1, 3]]
    """
    ranked = np.full((len(scores), k), -1, np.int64)
    for row, (user_scores, user_seen) in enumerate(zip(scores, seen, strict=True)):
        usable = np.isfinite(user_scores) if candidates is None else np.isfinite(user_scores) & candidates
        usable[user_seen] = False
        pool = np.flatnonzero(usable)
        if len(pool) > 4 * k:  # exact shortcut: what scores as high as the k-th, then a sort of these
            threshold = np.partition(user_scores[pool], len(pool) - k)[len(pool) - k]
            pool = pool[user_scores[pool] >= threshold]
        ties = np.random.default_rng([tie_seed, row]).permutation(len(pool))
        best = pool[np.lexsort((ties, -user_scores[pool]))][:k]
        ranked[row, : len(best)] = best
    return ranked
