"""A breaker: a part that failed half of its calls of late is left alone for a while, and requests do not wait for it.

Nygard, "Release It!", 2018, ch. 5. While it is open one call every few seconds tries whether the part is back.
"""

import time
from collections import deque
from collections.abc import Callable

_CALLS = 20
_MOST_FAILED = 0.5
_REST_SECONDS = 2.0
_REMEMBERED_SECONDS = 30.0


class Breaker:
    """One part's. Not safe for threads: it belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque(maxlen=_CALLS)
        self._opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are refused by now."""
        return self._opened_at is not None

    def lets_through(self) -> bool:
        """Whether to call now. While open, true once every rest: that call decides."""
        if self._opened_at is None:
            return True
        if self._clock() - self._opened_at < _REST_SECONDS:
            return False
        self._opened_at = self._clock()  # whoever comes meanwhile waits for what this call finds
        return True

    def note(self, failed: bool) -> None:
        """How a call went."""
        now = self._clock()
        if self._opened_at is not None:
            if not failed:
                self._opened_at = None
                self._calls.clear()
            return
        self._calls.append((now, failed))
        recent = [bad for at, bad in self._calls if now - at <= _REMEMBERED_SECONDS]
        if len(recent) == _CALLS and sum(recent) > _MOST_FAILED * _CALLS:
            self._opened_at = now
