"""Impressions of served lists, kept after the answer: a client waits for its list, not for the store.

What was answered within a moment is kept by one transaction of a thread of its own. While the store fails, lists wait
and are tried again; beyond a bound new ones are dropped and counted, because lists must not end where memory does.
Those that wait are lost if the process is killed: they are observations, not something that was acknowledged.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.store import EventStore
from serve_apps.metrics import GatewayMetrics

logger = logging.getLogger(__name__)

ITEMS_PER_TRANSACTION = 2000
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
_CLOSE_SECONDS = 5.0


class ImpressionLog:
    """Takes lists from any thread, and keeps them from one of its own."""

    def __init__(self, store: EventStore, cfg: FeedbackConfig, metrics: GatewayMetrics) -> None:
        self._store = store
        self._cfg = cfg
        self._metrics = metrics
        self._waiting: deque[Sequence[Impression]] = deque()
        self._num_waiting = 0
        self._changed = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(target=self._run, name="impressions", daemon=True)
        if cfg.record_impressions:
            self._writer.start()

    def add(self, shown: Sequence[Impression]) -> None:
        """Have a list kept soon. Returns at once."""
        if not shown or not self._cfg.record_impressions:
            return
        with self._changed:
            if self._closing or self._num_waiting + len(shown) > self._cfg.max_waiting_impressions:
                self._metrics.impressions.labels("dropped").inc(len(shown))
                return
            self._waiting.append(shown)
            self._num_waiting += len(shown)
            self._metrics.impressions_waiting.set(self._num_waiting)
            self._changed.notify()

    def close(self) -> None:
        """Keep what waits, for some seconds at most; what comes later is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer.is_alive():
            self._writer.join(_CLOSE_SECONDS)
        if self._num_waiting:
            logger.warning("%d impressions were not kept before the end", self._num_waiting)

    def _run(self) -> None:
        failures = 0
        while (lists := self._next()) is not None:
            if self._keep(lists):
                failures = 0
                self._forget(lists)
                continue
            if self._closing:
                return
            time.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1

    def _next(self) -> list[Sequence[Impression]] | None:
        """The oldest lists that wait, those of a moment together; they go on waiting until `_forget`. None: the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            if not self._closing and self._num_waiting < ITEMS_PER_TRANSACTION:
                self._changed.wait_for(self._is_due, self._cfg.impressions_flush_seconds)
            lists: list[Sequence[Impression]] = []
            size = 0
            for shown in self._waiting:
                if lists and size + len(shown) > ITEMS_PER_TRANSACTION:
                    break
                lists.append(shown)
                size += len(shown)
            return lists

    def _is_due(self) -> bool:
        return self._closing or self._num_waiting >= ITEMS_PER_TRANSACTION

    def _keep(self, lists: Sequence[Sequence[Impression]]) -> bool:
        try:
            with self._metrics.store_call("impressions"):
                num_kept = self._store.record_impressions([impression for shown in lists for impression in shown])
        except (SQLAlchemyError, OSError):
            logger.warning("the event store failed; %d lists wait for it", len(self._waiting), exc_info=True)
            return False
        except FeedbackError:
            if len(lists) > 1:  # one list that the store refuses must not take the others with it
                return all(self._keep([shown]) for shown in lists)
            logger.exception("impressions were refused")
            self._metrics.impressions.labels("refused").inc(sum(map(len, lists)))
            return True
        self._metrics.impressions.labels("kept").inc(num_kept)
        return True

    def _forget(self, lists: Sequence[Sequence[Impression]]) -> None:
        with self._changed:
            for shown in lists:
                self._waiting.popleft()
                self._num_waiting -= len(shown)
            self._metrics.impressions_waiting.set(self._num_waiting)
