"""Is a candidate well? Judged by each gateway from the requests that it answered itself.

Three questions, each answered only where it is sure: does it fail more often than the champion, is it slower, and are
its lists another's? Sure means one-sided bounds at 3.29 standard errors, one in 2,000: the question is asked over and
over.
"""

import math
from collections import deque
from collections.abc import Sequence

from avrec_ray.rollout.config import RolloutConfig

_Z = 3.29
_REMEMBERED = 500
"""Requests of each side that count; older ones are forgotten."""


class Guard:
    """What was seen of champion and candidate since the candidate came."""

    def __init__(self, cfg: RolloutConfig) -> None:
        self._cfg = cfg
        self._failed: dict[bool, deque[bool]] = {side: deque(maxlen=_REMEMBERED) for side in (False, True)}
        self._seconds: dict[bool, deque[float]] = {side: deque(maxlen=_REMEMBERED) for side in (False, True)}
        self._overlaps: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, is_candidate: bool, failed: bool, seconds: float) -> None:
        """A request that one of them answered, or failed to."""
        self._failed[is_candidate].append(failed)
        self._seconds[is_candidate].append(seconds)

    def compare(self, overlap: float) -> None:
        """How much of two lists for one request was the same, 0 to 1."""
        self._overlaps.append(overlap)

    def verdict(self) -> str:
        """Why the candidate must go, in a sentence; empty while nothing speaks against it."""
        return self._failures() or self._slowness() or self._strangeness()

    def _failures(self) -> str:
        mine, others = self._failed[True], self._failed[False]
        if len(mine) < min(10, self._cfg.guard_requests):
            return ""
        usual = sum(others) / len(others) if others else 0.0
        least = lower_bound(sum(mine), len(mine))
        if least <= usual + self._cfg.max_failure_increase:
            return ""
        return f"{sum(mine)} of {len(mine)} requests failed, of the champion's {sum(others)} of {len(others)}"

    def _slowness(self) -> str:
        mine, others = self._seconds[True], self._seconds[False]
        if min(len(mine), len(others)) < self._cfg.guard_requests:
            return ""
        slow_seconds = quantile(others, 0.95) + self._cfg.min_slower_ms / 1000
        slower = sum(seconds > slow_seconds for seconds in mine)
        if lower_bound(slower, len(mine)) <= self._cfg.max_slow_share:
            return ""
        return (
            f"{slower} of {len(mine)} requests took over {slow_seconds * 1000:.0f} ms, of the champion's one in twenty"
        )

    def _strangeness(self) -> str:
        overlaps = self._overlaps
        if len(overlaps) < min(20, self._cfg.guard_requests):
            return ""
        mean = math.fsum(overlaps) / len(overlaps)
        deviation = math.sqrt(math.fsum((o - mean) ** 2 for o in overlaps) / (len(overlaps) - 1))
        # Not below one list in all that agrees in one item: equal overlaps have no deviation, and are no certainty.
        error = max(deviation, 0.05) / math.sqrt(len(overlaps))
        if mean + _Z * error >= self._cfg.min_agreement:
            return ""
        return f"its lists share {mean:.0%} with the champion's over {len(overlaps)} requests"


def lower_bound(count: int, of: int) -> float:
    """Wilson's lower bound of a share (Wilson, "Probable Inference ...", JASA 1927), one-sided, one in 2,000."""
    if not of:
        return 0.0
    share, z2 = count / of, _Z**2
    middle = share + z2 / (2 * of)
    width = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, (middle - width) / (1 + z2 / of))


def quantile(values: Sequence[float] | deque[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def overlap(first: Sequence[str], second: Sequence[str], k: int = 10) -> float:
    """Share of the first `k` items that two lists have in common, of the longer one; 1 where both are empty."""
    mine, others = set(first[:k]), set(second[:k])
    longest = max(len(mine), len(others))
    return len(mine & others) / longest if longest else 1.0
