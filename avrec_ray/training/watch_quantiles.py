"""How long an event was watched beside others of items as long: watch time without the advantage of long items."""

import numpy as np
import numpy.typing as npt

NUM_GROUPS = 10
"""Groups of durations; each holds as many events as the next."""


def watch_quantiles(
    watch_ratio: npt.NDArray[np.float32],
    duration_seconds: npt.NDArray[np.float32],
    num_groups: int = NUM_GROUPS,
) -> npt.NDArray[np.float32]:
    """Quantile of each event's watch time among events of about its item's duration (D2Q, Zhan et al., KDD 2022).

    Args:
        watch_ratio: [E], watched share, NaN where unknown.
        duration_seconds: [E], of the event's item, NaN where unknown.
        num_groups: groups of equal size by duration; events of one duration stay together.

    Returns:
        float32 [E] in (0, 1), ties sharing their mean; NaN where either is unknown.

    >>> watch_quantiles(np.array([0.1, 0.9], np.float32), np.array([60, 60], np.float32), 1).tolist()
    [0.25, 0.75]
    """
    quantile = np.full(len(watch_ratio), np.nan, np.float32)
    known = np.flatnonzero(~np.isnan(watch_ratio) & ~np.isnan(duration_seconds))
    if not len(known):
        return quantile
    durations = duration_seconds[known]
    edges = np.quantile(durations, np.linspace(0, 1, num_groups + 1)[1:-1])
    group = np.searchsorted(edges, durations, side="left")
    for number in np.unique(group):
        rows = known[group == number]
        seconds = watch_ratio[rows] * duration_seconds[rows]
        _, inverse, counts = np.unique(seconds, return_inverse=True, return_counts=True)
        below = np.cumsum(counts) - counts
        quantile[rows] = ((below + counts / 2) / len(rows))[inverse]
    return quantile
