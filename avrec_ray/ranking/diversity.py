"""Diversity of a list: what a candidate is worth for the next place, given what is placed above. Two ways.

Both take candidates best score first, say `utility` [K] for the next place, and are told by `place` what it went to.
Relevance is the score mapped to [0, 1] within the request; likeness of two items is (1 + cosine) / 2, in [0, 1].

Dimension key: K candidates, D embedding, W placed items that repel.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import check_choice, check_range

Order = npt.NDArray[np.int64]
"""Positions of candidates, the one to be shown first in front."""
Vector = npt.NDArray[np.float64]

SPANNED = 1e-10
"""A candidate with less than this of its vector (squared) outside those placed is as good as one of them."""
_BEHIND = 1e6
"""Puts spanned candidates behind all others: utilities of these are above d * log(SPANNED), that is -24."""


class Diversifier(Protocol):
    """What is asked of a way to diversify."""

    @property
    def utility(self) -> Vector:
        """[K]: worth of each candidate for the next place; that of placed ones means nothing."""

    def place(self, position: int) -> None:
        """The next place went to this candidate."""


class ByScore:
    """No diversity: worth is relevance, whatever is above."""

    def __init__(self, relevance: Vector) -> None:
        self.utility = relevance

    def place(self, position: int) -> None:
        """Changes nothing."""


class Mmr:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998).

    Worth is (1 - diversity) * relevance - diversity * the greatest likeness to an item placed. O(K D) a place.
    """

    def __init__(self, relevance: Vector, vectors: Vector, diversity: float) -> None:
        self._relevance = (1 - diversity) * relevance
        self._vectors = vectors
        self._diversity = diversity
        self._likeness = np.zeros(len(relevance))

    @property
    def utility(self) -> Vector:
        """[K]."""
        return self._relevance - self._diversity * self._likeness

    def place(self, position: int) -> None:
        """Remember the likeness to one more item."""
        self._likeness = np.maximum(self._likeness, _likeness_to(self._vectors, position))


class Dpp:
    """Greedy MAP inference of a determinantal point process (Chen, Zhang and Zhou, NeurIPS 2018), by growing a Cholesky
    factor.

    The kernel is L_ij = q_i S_ij q_j with S the likeness and q_i = exp(relevance_i * (1 - diversity) / (2 diversity)).
    Then diversity times the gain in log det L is (1 - diversity) * relevance + diversity * log d^2. That is the worth;
    q, which overflows where diversity is near 0, is never computed. d^2 is what the items placed leave of a candidate:
    1 for one unlike them all, 0 for one that they span. O(K (D + W)) a place.

    With a window only the last `window` placed repel. One that leaves it is taken out of the factor by a reflection of
    all coefficients; what that sets free goes back into d^2 (the paper's section 4, which rotates two rows at a time).

    The determinant is 0 as soon as a spanned candidate joins: copies of placed items, and all candidates once as many
    are placed as S has ranks. These come last, in the order of their scores.
    """

    def __init__(self, relevance: Vector, vectors: Vector, diversity: float, window: int = 0) -> None:
        self._relevance = (1 - diversity) * relevance
        # float32 unit vectors are so to 1e-7 only: a copy would not be seen as one.
        self._vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._diversity = diversity
        self._window = window
        self._left_over = np.ones(len(relevance))  # d^2 [K]
        self._coefficients = np.zeros((0, len(relevance)))  # [W, K]; columns of members: the factor, but for rotation
        self._members: list[int] = []  # placed items whose rows these are
        self._recent: list[int] = []  # the last `window` placed, members or spanned by them

    @property
    def utility(self) -> Vector:
        """[K]."""
        spanned = self._left_over <= SPANNED
        gain = self._diversity * np.log(np.where(spanned, 1.0, self._left_over))
        return self._relevance + np.where(spanned, -_BEHIND, gain)

    def place(self, position: int) -> None:
        """One more item repels; the oldest of a full window no longer does."""
        if self._window and len(self._recent) == self._window:
            self._forget(self._recent.pop(0))
        if self._window:
            self._recent.append(position)
            # What a leaving item spanned may stand for itself now.
            for placed in self._recent:
                if placed not in self._members:
                    self._join(placed)
        else:
            self._join(position)

    def _join(self, position: int) -> None:
        left_over = self._left_over[position]
        if left_over <= SPANNED:
            return
        explained = self._coefficients[:, position] @ self._coefficients
        row = (_likeness_to(self._vectors, position) - explained) / np.sqrt(left_over)
        self._coefficients = np.vstack([self._coefficients, row])
        self._left_over = np.maximum(self._left_over - row * row, 0)
        self._members.append(position)

    def _forget(self, position: int) -> None:
        if position not in self._members:
            return
        leaving = self._members.index(position)
        # The direction that no member but the leaving one has a part in. A reflection turns it into the last row.
        direction = np.linalg.solve(self._coefficients[:, self._members].T, np.eye(len(self._members))[leaving])
        direction /= np.linalg.norm(direction) * (-1 if direction[-1] > 0 else 1)
        mirror = direction - np.eye(len(direction))[-1]
        freed = direction @ self._coefficients
        reflected = self._coefficients - np.outer(mirror, mirror @ self._coefficients) * (2 / (mirror @ mirror))
        self._coefficients = reflected[:-1]
        self._left_over = self._left_over + freed * freed
        del self._members[leaving]


DIVERSIFIERS: dict[str, Callable[[Vector, Vector, float, int], Diversifier]] = {
    "mmr": lambda relevance, vectors, diversity, window: Mmr(relevance, vectors, diversity),
    "dpp": Dpp,
}
"""Choices of `policy.diversifier`."""


def diversifier_of(
    name: str, scores: npt.NDArray[np.floating], embeddings: npt.NDArray[np.float32], diversity: float, window: int = 0
) -> Diversifier:
    """The diversifier of one request.

    Args:
        name: key of DIVERSIFIERS.
        scores: [K] finite, best first.
        embeddings: [K, D] unit vectors.
        diversity: 0 gives the ranking by score exactly; 1 ignores the score after the first place.
        window: of DPP: how many of the last places repel; 0: all.

    Raises:
        ValueError: a score is not finite, shapes differ, or diversity is outside [0, 1].
    """
    check_choice("diversifier", name, DIVERSIFIERS)
    check_range("diversity", diversity, 0, 1)
    if len(scores) != len(embeddings) or not np.isfinite(scores).all():
        raise ValueError(f"got scores {scores.shape} for embeddings {embeddings.shape}; expected finite [K] and [K, D]")
    relevance = min_max(scores.astype(np.float64))
    if diversity == 0:
        return ByScore(relevance)
    return DIVERSIFIERS[name](relevance, embeddings.astype(np.float64), diversity, window)


def mmr(scores: npt.NDArray[np.floating], embeddings: npt.NDArray[np.float32], diversity: float, k: int) -> Order:
    """The first `k` places by `Mmr`; ties go to the better score, then to the earlier candidate.

    Args:
        scores: [K] finite, in any order.
        embeddings: [K, D] unit vectors.
        diversity: 0 gives the ranking by score exactly; 1 ignores the score after the first place.
        k: places to fill; fewer where there are fewer candidates.

    Raises:
        ValueError: a score is not finite, shapes differ, or diversity is outside [0, 1].
    """
    return _greedy("mmr", scores, embeddings, diversity, k)


def dpp(
    scores: npt.NDArray[np.floating],
    embeddings: npt.NDArray[np.float32],
    diversity: float,
    k: int,
    window: int = 0,
) -> Order:
    """The first `k` places by `Dpp`, with ties, arguments and errors of `mmr`; `window` 0 is none.

    >>> dpp(np.array([3, 2.9, 1]), np.array([[1, 0], [1, 0], [0, 1]], np.float32), diversity=0.5, k=3).tolist()
    [0, 2, 1]
    """
    return _greedy("dpp", scores, embeddings, diversity, k, window)


def min_max(values: Vector) -> Vector:
    """Values mapped to [0, 1]; zeros where all are equal.

    >>> min_max(np.array([3.0, 1.0, 2.0])).tolist()
    [1.0, 0.0, 0.5]
    """
    if not len(values) or values.max() == values.min():
        return np.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())


def _greedy(
    name: str,
    scores: npt.NDArray[np.floating],
    embeddings: npt.NDArray[np.float32],
    diversity: float,
    k: int,
    window: int = 0,
) -> Order:
    ranking = np.argsort(-scores, kind="stable").astype(np.int64)
    if len(scores) != len(embeddings):  # before they are indexed by each other
        raise ValueError(f"got scores {scores.shape} for embeddings {embeddings.shape}; expected finite [K] and [K, D]")
    diversifier = diversifier_of(name, scores[ranking], embeddings[ranking], diversity, window)
    left = np.ones(len(ranking), bool)
    places = []
    for _ in range(min(k, len(ranking))):
        best = int(np.argmax(np.where(left, diversifier.utility, -np.inf)))
        places.append(best)
        left[best] = False
        diversifier.place(best)
    return ranking[places]


def _likeness_to(vectors: Vector, position: int) -> Vector:
    likeness: Vector = (1 + vectors @ vectors[position]) / 2
    return likeness
