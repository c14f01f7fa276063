"""How good predicted watch times are: how far off in seconds, and how often in the right order.

`predicted` and `actual` are float [E], seconds, parallel over E watched impressions.
"""

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.floating]
Ranks = npt.NDArray[np.int64]


def mean_absolute_error(predicted: Seconds, actual: Seconds) -> float:
    """Mean of |predicted - actual| in seconds.

    >>> mean_absolute_error(np.array([3.0, 10.0]), np.array([4.0, 8.0]))
    1.5
    """
    _check(predicted, actual)
    return float(np.abs(predicted.astype(np.float64) - actual).mean())


def xauc(predicted: Seconds, actual: Seconds) -> float:
    """Share of pairs of impressions that the prediction puts in the order of their watch times, in [0, 1].

    XAUC of Zhan et al., "Deconfounding Duration Bias in Watch-time Prediction for Video Recommendation", KDD 2022, over
    all pairs rather than sampled ones. Equal watch times have no order and make no pair; equal predictions win half a
    pair, so that a constant has 0.5. NaN without a pair. O(E log E) time and O(E) memory: pairs are never laid out.

    >>> xauc(np.array([1.0, 2.0, 5.0]), np.array([10.0, 30.0, 20.0])).__round__(4)
    0.6667
    """
    _check(predicted, actual)
    by_prediction, by_actual = _ranks(predicted), _ranks(actual)
    same = np.bincount(by_actual)
    num_pairs = (len(actual) ** 2 - int((same**2).sum())) // 2
    if not num_pairs:
        return float("nan")
    # Within equal watch times the predictions are sorted so that none of their pairs counts as an inversion.
    discordant = count_inversions(by_prediction[np.lexsort((by_prediction, by_actual))])
    concordant = count_inversions(by_prediction[np.lexsort((by_prediction, -by_actual))])
    return 0.5 + (concordant - discordant) / (2 * num_pairs)


def count_inversions(ranks: Ranks) -> int:
    """Number of pairs of which the first is larger, of int64 [E] from 0 on.

    Numbers differ first in some highest bit. From the top bit down, numbers that agree above it stand together in their
    old order, and each with a 0 counts those with a 1 before it.

    >>> count_inversions(np.array([2, 0, 1, 1]))
    3
    """
    total = 0
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        group, is_one = ranks >> (bit + 1), (ranks >> bit) & 1
        starts = np.searchsorted(group, group)
        ones_until = np.concatenate([[0], np.cumsum(is_one)])
        ones_before = ones_until[:-1] - ones_until[starts]
        total += int(ones_before[is_one == 0].sum())
        zeros_of_group = np.bincount(group, weights=1 - is_one)[group].astype(np.int64)
        place = np.where(is_one, starts + zeros_of_group + ones_before, np.arange(len(ranks)) - ones_before)
        moved = np.empty_like(ranks)
        moved[place] = ranks
        ranks = moved
    return total


def _ranks(values: Seconds) -> Ranks:
    """Place of each value among the distinct ones, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check(predicted: Seconds, actual: Seconds) -> None:
    if predicted.ndim != 1 or predicted.shape != actual.shape or not len(actual):
        raise ValueError(
            f"got predicted {predicted.shape} and actual {actual.shape}; expected one prediction for each watch time, "
            "at least one"
        )
    for name, values in (("predicted", predicted), ("actual", actual)):
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"{name} holds {values[row]} in row {row}; expected finite seconds")
    if (actual < 0).any():
        row = int(np.argmin(actual))
        raise ValueError(f"actual holds {actual[row]} in row {row}; a watch time is at least 0 seconds")
