"""Events into the database: callers that come at once share one commit, and each gets its own answer."""

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from avrec_ray.feedback import bulk
from avrec_ray.feedback.database import StoreUnavailableError, write
from avrec_ray.feedback.erased import refused_events
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import events
from avrec_ray.feedback.user_keys import require_writable
from avrec_ray.types import Event

MAX_EVENTS_PER_COMMIT = 2_000
"""Bounds how long the callers of one commit wait for each other."""
_IDS_PER_QUERY = 500


@dataclass(frozen=True)
class Rejection:
    """An event that was not kept. `index` is its place in the request."""

    index: int
    reason: str


@dataclass(frozen=True)
class Appended:
    """What became of the events of one request; the counts and the rejections add up to its length."""

    accepted: int
    duplicates: int
    rejected: list[Rejection] = field(default_factory=list)


@dataclass(eq=False)
class _Request:
    events: Sequence[Event]
    received_at_seconds: float
    outcome: Appended | BaseException | None = None
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when the outcome is there, or when it is this caller's turn to commit."""


class Appender:
    """Group commit: while one caller's transaction goes to disk, those that come meanwhile gather for the next.

    A caller alone waits for nobody. What is slow is the sync to disk, and ten callers then pay for one.
    """

    def __init__(self, engine: sa.Engine, pseudonyms: Pseudonyms) -> None:
        self._engine = engine
        self._pseudonyms = pseudonyms
        self._waiting: list[_Request] = []
        self._queue_lock = threading.Lock()
        self._is_committing = False

    def append(self, new_events: Sequence[Event], received_at_seconds: float) -> Appended:
        """See EventStore.append."""
        for event in new_events:
            self._pseudonyms.check_name(event.user_id)
        if not any(event.event_id for event in new_events):
            return _outcome(new_events, set(), {}, {})
        request = _Request(new_events, received_at_seconds)
        with self._queue_lock:
            self._waiting.append(request)
            leads, self._is_committing = not self._is_committing, True
        if not leads:
            self._wait(request)
        if request.outcome is None:
            try:
                self._commit(self._next_group())
            finally:
                self._pass_on()
        assert request.outcome is not None
        if isinstance(request.outcome, BaseException):
            raise request.outcome
        return request.outcome

    def _wait(self, request: _Request) -> None:
        # Not for a lock: those whose events are kept would queue for it with those who come anew.
        try:
            request.wake.wait()
        except BaseException:  # an interrupt: nobody may wait for this caller
            with self._queue_lock:
                is_waiting = request in self._waiting
                if is_waiting:
                    self._waiting.remove(request)
            if is_waiting and request.wake.is_set():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The next caller's turn to commit: the first that waits."""
        with self._queue_lock:
            self._is_committing = bool(self._waiting)
            if self._waiting:
                self._waiting[0].wake.set()

    def _next_group(self) -> list[_Request]:
        with self._queue_lock:
            size = 0
            for number, request in enumerate(self._waiting):
                size += len(request.events)
                if number and size > MAX_EVENTS_PER_COMMIT:
                    group, self._waiting = self._waiting[:number], self._waiting[number:]
                    return group
            group, self._waiting = self._waiting, []
            return group

    def _commit(self, group: list[_Request]) -> None:
        try:
            outcomes = append_requests(
                self._engine, self._pseudonyms, [(r.events, r.received_at_seconds) for r in group]
            )
        except Exception as error:
            if len(group) > 1 and not isinstance(error, StoreUnavailableError):
                for request in group:  # one of them is to blame: the others are not held up by it
                    self._commit([request])
                return
            self._answer(group, [error] * len(group))
        except BaseException as error:  # an interrupt: the others must not wait for ever
            interrupted = StoreUnavailableError(f"event store: interrupted by {type(error).__name__}")
            self._answer(group, [interrupted] * len(group))
            raise
        else:
            self._answer(group, outcomes)

    def _answer(self, group: list[_Request], outcomes: Sequence[Appended | BaseException]) -> None:
        for request, outcome in zip(group, outcomes, strict=True):
            request.outcome = outcome
            request.wake.set()


def append_requests(
    engine: sa.Engine, pseudonyms: Pseudonyms, requests: Sequence[tuple[Sequence[Event], float]]
) -> list[Appended]:
    """Keep the events of several requests, each with the server's time, in one transaction."""
    rows: dict[str, dict[str, Any]] = {}
    for new_events, received_at_seconds in requests:
        for event in new_events:
            if event.event_id and event.event_id not in rows:
                rows[event.event_id] = _row(event, received_at_seconds)
    stored: dict[str, bytes] = {event_id: row["fingerprint"] for event_id, row in rows.items()}
    with write(engine) as connection:
        require_writable(connection, pseudonyms)
        refused = refused_events(connection, pseudonyms, list(rows.values()))
        wanted = [row for event_id, row in rows.items() if event_id not in refused]
        insert = bulk.insert_ignoring_known(connection).returning(events.c.event_id)
        inserted = set(connection.execute(insert, wanted).scalars()) if wanted else set()
        stored |= _fingerprints(connection, [event_id for event_id in rows if event_id not in inserted])
    return [_outcome(new_events, inserted, stored, refused, pseudonyms) for new_events, _ in requests]


def _outcome(
    new_events: Sequence[Event],
    inserted: set[str],
    stored: Mapping[str, bytes],
    refused: Mapping[str, str],
    pseudonyms: Pseudonyms | None = None,
) -> Appended:
    """`inserted` loses each id when it is counted: it is new once, and a duplicate from then on."""
    duplicates, rejected = 0, []
    for index, event in enumerate(new_events):
        if not event.event_id:
            rejected.append(Rejection(index, "event_id is missing"))
        elif event.event_id in refused:
            rejected.append(Rejection(index, refused[event.event_id]))
        elif not _is_same(event, stored[event.event_id], pseudonyms):
            rejected.append(Rejection(index, f"conflict: event_id {event.event_id!r} is kept with another body"))
        elif event.event_id in inserted:
            inserted.remove(event.event_id)
        else:
            duplicates += 1
    return Appended(len(new_events) - duplicates - len(rejected), duplicates, rejected)


def _is_same(event: Event, stored: bytes, pseudonyms: Pseudonyms | None) -> bool:
    """Also of a row that was kept under an older key, whose fingerprint has the user's older name in it."""
    if stored == fingerprint_of(event):
        return True
    older = pseudonyms.aliases(event.user_id)[1:] if pseudonyms else ()
    return any(stored == fingerprint_of(dataclasses.replace(event, user_id=alias)) for alias in older)


def _row(event: Event, received_at_seconds: float) -> dict[str, Any]:
    at_seconds = received_at_seconds if math.isnan(event.at_seconds) else event.at_seconds
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "event": event.event,
        "at_us": round(at_seconds * 1e6),
        "received_us": round(received_at_seconds * 1e6),
        "watch_seconds": event.watch_seconds,
        "value": event.value,
        "request_id": event.request_id,
        "position": event.position,
        "fingerprint": fingerprint_of(event),
    }


def _fingerprints(connection: sa.Connection, event_ids: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for start in range(0, len(event_ids), _IDS_PER_QUERY):
        some = events.c.event_id.in_(event_ids[start : start + _IDS_PER_QUERY])
        query = sa.select(events.c.event_id, events.c.fingerprint).where(some)
        found |= {row.event_id: bytes(row.fingerprint) for row in connection.execute(query)}
    return found
