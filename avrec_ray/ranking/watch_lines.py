"""Fitting how the watched share rises with the log odds of a choice, for each class of users; see `user_classes`.

Dimension key: U users, N items, K classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]

PSEUDO_SPREAD = 2.0
"""Added to the spread of the odds, so that the line of a class that watched little stays flat."""
LEAST_VARIANCE = 0.05
"""Of the noise; less would make of watched shares a proof."""


@dataclass(frozen=True, eq=False)
class LinesFit:
    """The lines of least squares through what was watched."""

    intercepts_K: Floats
    slopes_K: Floats
    squared_error: float
    """Of all classes, with the penalty on slopes."""

    @classmethod
    def flat(cls, num_classes: int) -> "LinesFit":
        """Lines that tell no class from another."""
        return cls(np.zeros(num_classes), np.zeros(num_classes), 0.0)

    def at(self, odds_KN: Floats) -> Floats:
        """[K, N]: expected log odds of the watched share."""
        return self.intercepts_K[:, None] + self.slopes_K[:, None] * odds_KN


@dataclass(frozen=True, eq=False)
class Watched:
    """Of which items it is known how long each user watched them."""

    known_UN: sparse.csr_matrix
    """1 where it is known."""
    logits_UN: sparse.csr_matrix
    """Log odds of the share there."""

    def log_likelihood(self, lines: LinesFit, odds_KN: Floats, variance: float) -> Floats:
        """[U, K]: of what each user watched, up to what is the same for all classes."""
        expected_KN = lines.at(odds_KN)
        squares_UK = self.known_UN @ (expected_KN**2).T - 2 * (self.logits_UN @ expected_KN.T)
        return np.asarray(-0.5 / variance * squares_UK)

    def of_classes(self, members_UK: Floats) -> "ClassWatched":
        """Summed over users, each by how much of each class it is."""
        squares_U = np.asarray(self.logits_UN.multiply(self.logits_UN).sum(1)).ravel()
        times_KN, logits_KN = (np.asarray((part.T @ members_UK).T) for part in (self.known_UN, self.logits_UN))
        return ClassWatched(times_KN, logits_KN, squares_U @ members_UK)


@dataclass(frozen=True, eq=False)
class ClassWatched:
    """What the users of each class watched."""

    times_KN: Floats
    logits_KN: Floats
    """Summed over those times."""
    squares_K: Floats
    """Of the logits, summed over all items."""

    def lines(self, odds_KN: Floats) -> LinesFit:
        """The best lines for these log odds of a choice.

        Tastes are improved against the best line for them, not against the last round's: a slope that is held would
        hold the scale of tastes, too (variable projection: Golub and Pereyra, 1973).
        """
        total_K = self.times_KN.sum(1) + 1e-9
        odds_K = (self.times_KN * odds_KN).sum(1) / total_K
        logits_K = self.logits_KN.sum(1) / total_K
        spread_K = (self.times_KN * odds_KN**2).sum(1) - total_K * odds_K**2 + PSEUDO_SPREAD
        together_K = (self.logits_KN * odds_KN).sum(1) - total_K * odds_K * logits_K
        slopes_K = np.maximum(together_K / spread_K, 0.0)
        errors_K = self.squares_K - total_K * logits_K**2 + slopes_K * (slopes_K * spread_K - 2 * together_K)
        return LinesFit(logits_K - slopes_K * odds_K, slopes_K, float(errors_K.sum()))

    def error_slopes(self, lines: LinesFit, odds_KN: Floats) -> Floats:
        """[K, N]: how half the squared error of the best lines changes with the log odds."""
        return lines.slopes_K[:, None] * (self.times_KN * lines.at(odds_KN) - self.logits_KN)

    def variance(self, lines: LinesFit) -> float:
        """Of the noise around these lines."""
        return max(lines.squared_error / (float(self.times_KN.sum()) + 1e-9), LEAST_VARIANCE)
