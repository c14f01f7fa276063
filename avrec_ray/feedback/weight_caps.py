"""No single voice decides: weights of training examples, so that no group has more than its share of their sum.

Dimension key: E examples, G groups.
"""

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

LEAST_EVEN_SHARES = 3.0
"""A cap is never below so many times the share that each of G groups has when all have the same."""
_ROUNDS = 20


def effective_share(num_groups: int, max_share: float) -> float:
    """The cap that can be kept with so many groups.

    >>> effective_share(1000, 0.01), effective_share(30, 0.01)
    (0.01, 0.1)
    """
    return min(1.0, max(max_share, LEAST_EVEN_SHARES / max(num_groups, 1)))


def cap_group_weights(weights_E: Weights, group_E: Codes, max_share: float) -> Weights:
    """Weights with every group's sum at most `effective_share` of the sum of all, after capping.

    A group above the cap is scaled down as a whole; the others keep what they had. Nobody's weight rises.

    Args:
        weights_E: float64 [E], at least 0.
        group_E: int64 [E], codes from 0; -1 for examples of no group, which count to the sum and are never capped.
        max_share: above 0 and up to 1.
    """
    grouped = group_E >= 0
    if not grouped.any():
        return weights_E
    sums_G = np.bincount(group_E[grouped], weights_E[grouped]).astype(np.float64)
    share = effective_share(int((sums_G > 0).sum()), max_share)
    level = _level(sums_G, float(weights_E[~grouped].sum()), share)
    factor_G = np.minimum(1.0, level / np.maximum(sums_G, 1e-300))
    return np.where(grouped, weights_E * factor_G[np.maximum(group_E, 0)], weights_E)


def _level(sums_G: Weights, rest: float, share: float) -> float:
    """The largest sum s a group may have so that s <= share * sum(min(sums, s) + rest)."""
    if share >= 1:
        return np.inf
    largest = np.sort(sums_G)[::-1]
    left = np.concatenate([[largest.sum()], largest.sum() - np.cumsum(largest)]) + rest
    for num_capped in range(int(np.ceil(1 / share))):  # that many at the cap would be everything
        level = share * left[num_capped] / max(1 - share * num_capped, 1e-12)
        if num_capped == len(largest) or largest[num_capped] <= level:
            return float(level)
    return float(largest[-1])


def cap_weights(weights_E: Weights, caps: list[tuple[Codes, float]]) -> Weights:
    """`cap_group_weights` by several groupings at once, such as users and creators.

    Capping by one raises the shares by the other, so that they take turns. Where no weights keep all caps (one user
    alone acts on half of the creators, say) each sum is still held down, and the result may be above a cap.
    """
    for _ in range(_ROUNDS):
        before = weights_E
        for group_E, max_share in caps:
            weights_E = cap_group_weights(weights_E, group_E, max_share)
        if np.allclose(before, weights_E, rtol=1e-9, atol=0):
            break
    return weights_E
