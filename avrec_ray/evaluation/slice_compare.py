"""Two models on every slice at once: how good, how much better, and how sure for all slices together.

Values are float64 [U'], one a user of the slice in the same order for both models, of a metric of which more is better.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avrec_ray.evaluation.hits import Floats
from avrec_ray.evaluation.significance import bootstrap_interval, compare_models, holm

MIN_USERS = 10
"""Slices with fewer users are listed with their mean alone: an interval over so few users promises too much."""

WHOLE = "all"
"""The slice of everybody and everything."""


@dataclass(frozen=True)
class SliceRow:
    """A model on a slice, beside another; intervals at 95 % over users, NaN where there are too few."""

    name: str
    num_users: int
    mean: float
    low: float
    high: float
    other: float
    """Mean of the other model."""
    difference: float
    """Mean minus that of the other."""
    difference_low: float
    difference_high: float
    verdict: str
    """ "better", "worse" or "unclear", parts after correction for their number; "few users" where it is not judged."""


def compare_slices(
    mine: Mapping[str, Floats], other: Mapping[str, Floats], seed: int = 0, level: float = 0.95, num_samples: int = 2000
) -> list[SliceRow]:
    """One row a slice with users. A slice is better or worse where its interval leaves out 0 and its p value is below
    1 - level. That of "all" stands alone, since it is the question; the others are corrected for their number, since
    among many slices some differ by chance.

    Raises:
        ValueError: the models have values for different users, or a value that is not finite.
    """
    names = [name for name, values in mine.items() if len(values)]
    judged = [name for name in names if len(mine[name]) >= MIN_USERS]
    found = {
        name: compare_models(
            {"value": mine[name]}, {"value": other[name]}, np.random.default_rng(seed), num_samples, level
        )[0]
        for name in judged
    }
    p_values = _corrected({name: comparison.p_value for name, comparison in found.items()})
    rows = []
    for name in names:
        means = float(mine[name].mean()), float(other[name].mean())
        low = high = difference_low = difference_high = float("nan")
        verdict = "few users"
        if name in found:
            low, high = bootstrap_interval(mine[name], np.random.default_rng(seed), num_samples, level)
            difference_low, difference_high = found[name].low, found[name].high
            is_clear = p_values[name] < 1 - level and not difference_low <= 0 <= difference_high
            verdict = ("better" if means[0] > means[1] else "worse") if is_clear else "unclear"
        bounds = means[0] - means[1], difference_low, difference_high
        rows.append(SliceRow(name, len(mine[name]), means[0], low, high, means[1], *bounds, verdict))
    return rows


def _corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction over all slices but WHOLE."""
    parts = [name for name in p_values if name != WHOLE]
    return dict(p_values) | dict(zip(parts, holm([p_values[name] for name in parts]).tolist(), strict=True))
