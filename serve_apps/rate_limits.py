"""How often a key may ask: token buckets in one place, and what a gateway replica does to seldom go there.

A bucket fills with `per_second` tokens a second up to `burst`; a request takes one. Replicas take some at a time, at
most what flows in within LEASE_SECONDS, so that a busy key costs few calls. All replicas together let in, in any t
seconds, at most burst + t * per_second + what they had taken before.
"""

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from avrec_ray.config import LimitsConfig
from serve_apps.keys import Key
from serve_apps.problems import ProblemError

logger = logging.getLogger(__name__)

LEASE_SECONDS = 0.05
CALL_SECONDS = 0.5
"""Longest wait for the place where buckets are kept."""


@dataclass
class Bucket:
    """Tokens there were at a time, by the clock of `TokenBuckets`."""

    tokens: float
    at_seconds: float


class TokenBuckets:
    """Buckets by name. One owner calls it, one call at a time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str, Bucket] = {}

    def take(self, name: str, per_second: float, burst: int, wanted: int) -> tuple[int, float]:
        """Take up to `wanted` tokens: how many there were, and, if none, the seconds until there is one.

        >>> buckets = TokenBuckets(lambda: 0.0)
        >>> buckets.take("shop", 0.5, 3, 2), buckets.take("shop", 0.5, 3, 2), buckets.take("shop", 0.5, 3, 2)
        ((2, 0.0), (1, 0.0), (0, 2.0))
        """
        now = self._now()
        bucket = self._buckets.setdefault(name, Bucket(burst, now))
        tokens = min(burst, bucket.tokens + max(0.0, now - bucket.at_seconds) * per_second)
        granted = min(wanted, int(tokens))
        self._buckets[name] = Bucket(tokens - granted, now)
        return granted, 0.0 if granted else (1 - tokens) / per_second


Take = Callable[[str, float, int, int], Awaitable[tuple[int, float]]]
"""`TokenBuckets.take`, wherever it runs."""


class RateLimiter:
    """Admits requests of keys, for one gateway replica."""

    def __init__(self, limits: LimitsConfig, take: Take, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._take, self._now = limits, take, now
        self._held: dict[str, int] = defaultdict(int)
        self._full_until: dict[str, float] = {}

    async def admit(self, key: Key, kind: str) -> None:
        """Count a request of `kind` read or write.

        Where the buckets cannot be asked, reads go on and writes wait: a list too many is no harm, events that nobody
        counts can be.

        Raises:
            ProblemError: 429 past the rate, 503 for a write that cannot be counted; both with Retry-After.
        """
        per_second = self._limits.read_per_second if kind == "read" else self._limits.write_per_second
        burst = self._limits.read_burst if kind == "read" else self._limits.write_burst
        if not per_second:
            return
        bucket = f"{key.digest[:16]}/{kind}"
        if self._held[bucket] > 0:
            self._held[bucket] -= 1
            return
        wait_seconds = self._full_until.get(bucket, 0.0) - self._now()
        if wait_seconds <= 0:
            try:
                wait_seconds = await self._lease(bucket, per_second, burst)
            except Exception as error:
                self._without_buckets(kind, error)
                return
        if wait_seconds > 0:
            retry_after = max(1, math.ceil(wait_seconds))
            raise ProblemError(
                429, f"more than {per_second:g} requests a second that {kind}; send fewer, or ask for a higher limit",
                {"retry_after_seconds": retry_after}, {"Retry-After": str(retry_after)},
            )  # fmt: skip

    async def _lease(self, bucket: str, per_second: float, burst: int) -> float:
        """Take tokens, one of which is used; or the seconds to wait."""
        wanted = max(1, min(burst, int(per_second * LEASE_SECONDS)))
        granted, wait_seconds = await asyncio.wait_for(self._take(bucket, per_second, burst, wanted), CALL_SECONDS)
        if granted:
            self._held[bucket] += granted - 1
            return 0.0
        self._full_until[bucket] = self._now() + wait_seconds
        return wait_seconds

    def _without_buckets(self, kind: str, error: Exception) -> None:
        logger.warning("rates are not counted now: %r", error)
        if kind != "read":
            raise ProblemError(
                503, "requests cannot be counted now, and so nothing is stored; send it again"
            ) from error
