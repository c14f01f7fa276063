"""Whether a difference between two models is more than chance: over users, over several metrics, over seeds.

A model's values are float64 [U], one a user, of a metric; of two models in the same order of the same users.

Dimension key: U users, R resamples, M metrics.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]

MAX_VALUES = 4_000_000
"""Numbers that are drawn at once, which bounds memory at some 100 MB whatever the number of users."""


@dataclass(frozen=True)
class Comparison:
    """Models a and b in one metric on the same users.

    `difference` is mean_a - mean_b, between `low` and `high` at the level asked for; `p_value` is that of no
    difference, after Holm's correction where several metrics were compared. `better` is "a", "b" or "neither".
    """

    metric: str
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    better: str


@dataclass(frozen=True)
class SeedMean:
    """Mean of a metric over runs that differ in their seed alone, between `low` and `high`."""

    mean: float
    low: float
    high: float
    num_seeds: int


def compare_models(
    a: Mapping[str, Floats],
    b: Mapping[str, Floats],
    rng: np.random.Generator,
    num_samples: int = 10_000,
    level: float = 0.95,
    lower_is_better: Collection[str] = (),
) -> list[Comparison]:
    """Every metric that both models have, compared on the same users.

    A model is better where the p value after Holm's correction is below 1 - level and the interval of the difference
    leaves out 0. The interval is that of one metric alone, not corrected.

    Args:
        a, b: float64 [U] a metric, such as `per_user_metrics` gives.
        num_samples: resamples for intervals and sign flips each.
        lower_is_better: names of metrics of which less is better.

    Raises:
        ValueError: no metric in common, different numbers of users, or a value that is not finite.
    """
    names = [name for name in a if name in b]
    if not names:
        raise ValueError(f"no metric in common between {sorted(a)} and {sorted(b)}; expected at least one")
    differences = np.stack([_differences(a[name], b[name], name) for name in names], axis=1)
    lows, highs = _interval(_resampled_means(differences, rng, num_samples), level)
    p_values = holm(_sign_flip_p_values(differences, rng, num_samples))
    comparisons = []
    for column, name in enumerate(names):
        low, high, p_value = float(lows[column]), float(highs[column]), float(p_values[column])
        is_clear = p_value < 1 - level and not low <= 0 <= high
        winner = "a" if (low > 0) != (name in lower_is_better) else "b"
        means = float(a[name].mean()), float(b[name].mean())
        comparisons.append(
            Comparison(name, *means, means[0] - means[1], low, high, p_value, winner if is_clear else "neither")
        )
    return comparisons


def bootstrap_interval(
    per_user: Floats, rng: np.random.Generator, num_samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of `per_user` [U] under resampling of users. For two models pass the differences, or call
    `difference_interval`."""
    if not len(per_user):
        raise ValueError("got no users; an interval needs at least one")
    low, high = _interval(_resampled_means(per_user[:, None], rng, num_samples), level)
    return float(low[0]), float(high[0])


def difference_interval(
    a: Floats, b: Floats, rng: np.random.Generator, num_samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) under resampling of users, each drawn with both its values (paired bootstrap)."""
    return bootstrap_interval(_differences(a, b), rng, num_samples, level)


def sign_flip_p_value(a: Floats, b: Floats, rng: np.random.Generator, num_samples: int = 10_000) -> float:
    """Two-sided p value of no difference between a and b [U]: how often a difference as large arises when each user's
    two values are swapped at random (paired permutation test).

    Exact, by all 2^U swaps, where these are at most `num_samples`; else (1 + as large) / (1 + num_samples).

    >>> sign_flip_p_value(np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.1, 0.1]), np.random.default_rng(0))
    0.25
    """
    return float(_sign_flip_p_values(_differences(a, b)[:, None], rng, num_samples)[0])


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """P values of a family of tests corrected so that any false finding among them is as rare as the level says.

    The i-th smallest of m is multiplied by m + 1 - i, never falls below the ones before, and ends at 1 (Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure", 1979).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"got p values {given.tolist()}; expected numbers from 0 to 1")
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


def over_seeds(values: Sequence[float] | Floats, level: float = 0.95) -> SeedMean:
    """Mean of a metric over seeds and its t interval, mean +- t(n - 1) s / sqrt(n) with the sample deviation s."""
    seeds = np.asarray(values, np.float64)
    if len(seeds) < 2 or not np.isfinite(seeds).all():
        raise ValueError(f"got {seeds.tolist()}; an interval over seeds needs at least two runs with finite values")
    half = float(stdtrit(len(seeds) - 1, (1 + level) / 2) * seeds.std(ddof=1) / np.sqrt(len(seeds)))
    mean = float(seeds.mean())
    return SeedMean(mean, mean - half, mean + half, len(seeds))


def _differences(a: Floats, b: Floats, name: str = "the metric") -> Floats:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"{name}: got values {a.shape} and {b.shape}; expected the same users, at least one")
    differences = a - b
    if not np.isfinite(differences).all():
        row = int(np.argmin(np.isfinite(differences)))
        raise ValueError(
            f"{name}: row {row} holds {a[row]} and {b[row]}; leave users without a value out of both models"
        )
    return np.asarray(differences, np.float64)


def _interval(means: Floats, level: float) -> tuple[Floats, Floats]:
    """Percentiles [M] of resampled means [R, M] that hold `level` of them, as many outside on either side."""
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return low, high


def _resampled_means(values: Floats, rng: np.random.Generator, num_samples: int) -> Floats:
    """[R, M] means of values [U, M] over users drawn with replacement, the same users for every metric."""
    columns = np.ascontiguousarray(values.T)
    means = np.empty((num_samples, len(columns)))
    for rows in _blocks(num_samples, len(values)):
        drawn = rng.integers(0, len(values), (rows.stop - rows.start, len(values)))
        for metric, column in enumerate(columns):
            means[rows, metric] = column[drawn].mean(1)
    return means


def _sign_flip_p_values(differences: Floats, rng: np.random.Generator, num_samples: int) -> Floats:
    """[M] p values of differences [U, M], the same swaps for every metric."""
    num_users = len(differences)
    is_exact = num_users < 63 and 2**num_users <= num_samples
    num_flips = 2**num_users if is_exact else num_samples
    # Sums in another order differ in their last digits; what is as large but for that counts as large.
    observed = np.abs(differences.sum(0)) - 1e-12 * np.abs(differences).sum(0)
    as_large = np.zeros(differences.shape[1], np.int64)
    for rows in _blocks(num_flips, num_users):
        kept = _every_subset(rows, num_users) if is_exact else _random_subsets(rows, num_users, rng)
        sums = 2 * kept.astype(np.float64) @ differences - differences.sum(0)
        as_large += (np.abs(sums) >= observed).sum(0)
    return as_large / num_flips if is_exact else (1 + as_large) / (1 + num_flips)


def _every_subset(rows: slice, num_users: int) -> npt.NDArray[np.int64]:
    return (np.arange(rows.start, rows.stop)[:, None] >> np.arange(num_users)) & 1


def _random_subsets(rows: slice, num_users: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    drawn = rng.integers(0, 256, (rows.stop - rows.start, -(-num_users // 8)), np.uint8)
    return np.unpackbits(drawn, axis=1, count=num_users)


def _blocks(num_rows: int, width: int) -> Iterator[slice]:
    step = max(1, MAX_VALUES // max(1, width))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))
