"""Feedback: events checked one by one, stored together, acknowledged when they are on disk."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.events import read_event
from avrec_ray.feedback.store import Appended, EventStore
from avrec_ray.types import Event
from serve_apps.metrics import GatewayMetrics
from serve_apps.problems import ProblemError
from serve_apps.request_ids import current_request_id
from serve_apps.schemas import FeedbackResponse, RejectionBody

logger = logging.getLogger(__name__)

_WRITE_THREADS = 4


class Inbox:
    """Takes the events of one request at a time into the store."""

    def __init__(self, store: EventStore, cfg: FeedbackConfig, metrics: GatewayMetrics) -> None:
        self._store = store
        self._cfg = cfg
        self._metrics = metrics
        self._writers = ThreadPoolExecutor(_WRITE_THREADS, "feedback")

    async def keep(self, submitted: Sequence[Any]) -> FeedbackResponse:
        """Store what is valid and say what is not.

        Raises:
            ProblemError: 422 if there are too many events or not one is well formed; 503 if the store fails, and
                then nothing was kept: send the same request again.
        """
        if len(submitted) > self._cfg.max_events_per_request:
            raise ProblemError(
                422, f"events: got {len(submitted)} events, expected at most {self._cfg.max_events_per_request}"
            )
        received_at_seconds = time.time()
        events, rejected = self._read(submitted, received_at_seconds)
        if submitted and not events:
            self._metrics.events.labels("rejected").inc(len(rejected))
            raise ProblemError(422, f"events.0: {rejected[0].reason}", _nothing_kept(rejected))
        kept = await self._append(list(events.values()), received_at_seconds)
        places = list(events)
        rejected += [RejectionBody(index=places[r.index], reason=r.reason) for r in kept.rejected]
        self._count(kept, len(rejected))
        rejected.sort(key=lambda r: r.index)
        return FeedbackResponse(accepted=kept.accepted, duplicates=kept.duplicates, rejected=rejected)

    def close(self) -> None:
        """Wait for writes that are under way."""
        self._writers.shutdown()

    def _read(
        self, submitted: Sequence[Any], received_at_seconds: float
    ) -> tuple[dict[int, Event], list[RejectionBody]]:
        events, rejected = {}, []
        for index, values in enumerate(submitted):
            try:
                event = read_event(values, received_at_seconds, self._cfg.max_clock_skew_seconds)
                events[index] = dataclasses.replace(event, user_id=self._store.pseudonyms.of(event.user_id))
            except FeedbackError as error:
                rejected.append(RejectionBody(index=index, reason=str(error)))
        return events, rejected

    async def _append(self, events: list[Event], received_at_seconds: float) -> Appended:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writers, self._write, events, received_at_seconds)
        except (SQLAlchemyError, OSError) as error:
            logger.exception("request %s: the event store failed", current_request_id())
            raise ProblemError(
                503, "the event store failed and nothing was kept; send the same events again"
            ) from error

    def _write(self, events: list[Event], received_at_seconds: float) -> Appended:
        with self._metrics.store_call("write"):
            return self._store.append(events, received_at_seconds)

    def _count(self, kept: Appended, num_rejected: int) -> None:
        outcomes = {"accepted": kept.accepted, "duplicate": kept.duplicates, "rejected": num_rejected}
        for outcome, count in outcomes.items():
            self._metrics.events.labels(outcome).inc(count)


def _nothing_kept(rejected: list[RejectionBody]) -> dict[str, Any]:
    return {"accepted": 0, "duplicates": 0, "rejected": [r.model_dump() for r in rejected]}
