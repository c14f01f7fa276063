"""The event store: durable before the answer, once per `event_id`, one user's history in one indexed read."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import sqlalchemy as sa

from avrec_ray.feedback import bulk
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.tables import ACTED, events, open_engine, store_info, write
from avrec_ray.types import Event

HISTORY_COLUMNS = (
    events.c.user_id, events.c.item_id, events.c.event, events.c.at_us, events.c.watch_seconds, events.c.value,
    events.c.event_id, events.c.request_id, events.c.position,
)  # fmt: skip
_USERS_PER_QUERY = 500


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


class EventStore:
    """Events of all users. Safe for threads; several processes may open one store."""

    def __init__(self, url: str, busy_timeout_seconds: float = 10.0) -> None:
        """Open or create the store at a SQLAlchemy URL, e.g. sqlite:////data/events.db.

        Raises:
            ConfigError: the URL is malformed, in memory, or of an unsupported database.
            FeedbackError: the store has another schema version.
        """
        self._engine = open_engine(url, busy_timeout_seconds)

    def append(self, new_events: Sequence[Event], received_at_seconds: float) -> Appended:
        """Keep events, in one transaction that is on disk when this returns.

        An event without `event_id` is rejected. One whose id is known is a duplicate if its body is the same, and
        rejected as a conflict if not. `at_seconds` NaN takes the server's `received_at_seconds`.
        """
        rejected = [Rejection(i, "event_id is missing") for i, e in enumerate(new_events) if not e.event_id]
        rows: dict[str, dict[str, object]] = {}
        for event in new_events:
            if event.event_id:
                rows.setdefault(event.event_id, _row(event, received_at_seconds))
        if not rows:
            return Appended(0, 0, rejected)
        with write(self._engine) as connection:
            inserted = _insert_new(connection, list(rows.values()))
            stored = _fingerprints(connection, list(rows))
        duplicates = 0
        for index, event in enumerate(new_events):
            if not event.event_id:
                continue
            if stored[event.event_id] != fingerprint_of(event):
                rejected.append(Rejection(index, f"conflict: event_id {event.event_id!r} is kept with another body"))
            elif event.event_id in inserted:
                inserted.remove(event.event_id)
            else:
                duplicates += 1
        rejected.sort(key=lambda r: r.index)
        return Appended(len(new_events) - duplicates - len(rejected), duplicates, rejected)

    def history(self, user_id: str, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events of a user, oldest first; impressions are no part of a history."""
        query = (
            sa.select(*HISTORY_COLUMNS)
            .where(events.c.user_id == user_id, ACTED)
            .order_by(events.c.at_us.desc(), events.c.seq.desc())
            .limit(limit)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return tuple(_event(row) for row in reversed(rows))

    def histories(self, user_ids: Sequence[str], limit: int) -> dict[str, tuple[Event, ...]]:
        """`history` of many users; a user without events has an empty one."""
        found: dict[str, list[Event]] = {user_id: [] for user_id in user_ids}
        users = list(found)
        newest = sa.func.row_number().over(
            partition_by=events.c.user_id, order_by=(events.c.at_us.desc(), events.c.seq.desc())
        )
        for start in range(0, len(users), _USERS_PER_QUERY):
            mine = (
                sa.select(*HISTORY_COLUMNS, events.c.seq, newest.label("age"))
                .where(events.c.user_id.in_(users[start : start + _USERS_PER_QUERY]), ACTED)
                .subquery()
            )
            query = sa.select(mine).where(mine.c.age <= limit).order_by(mine.c.at_us, mine.c.seq)
            with self._engine.connect() as connection:
                for row in connection.execute(query):
                    found[row.user_id].append(_event(row))
        return {user_id: tuple(history) for user_id, history in found.items()}

    def import_interactions(self, table: pa.Table) -> int:
        """Load an interactions table; returns how many events were new.

        A row without `event_id` gets one made from its content, so that importing the same table again adds nothing.
        Rows whose id is known are left as they are. Killed half-way, it may simply be run again.

        Raises:
            TableError: the table breaks its schema; nothing is loaded.
        """
        return bulk.import_interactions(self._engine, table, time.time())

    def export_interactions(self, after_watermark: int = 0) -> tuple[pa.Table, int]:
        """Events kept after a watermark as an interactions table in server order, and the new watermark.

        Chained watermarks give every event exactly once.
        """
        return bulk.export_interactions(self._engine, after_watermark)

    def count(self) -> int:
        """Number of events kept."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()

    def ping(self) -> None:
        """Raise if the database cannot be read."""
        with self._engine.connect() as connection:
            connection.execute(sa.select(store_info.c.value).limit(1))

    def close(self) -> None:
        """Close every connection; the store may be opened again."""
        self._engine.dispose()


def _row(event: Event, received_at_seconds: float) -> dict[str, object]:
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


def _event(row: sa.Row[tuple[object, ...]]) -> Event:
    return Event(
        user_id=row.user_id,
        item_id=row.item_id,
        event=row.event,
        at_seconds=row.at_us / 1e6,
        watch_seconds=row.watch_seconds,
        value=row.value,
        event_id=row.event_id,
        request_id=row.request_id,
        position=row.position,
    )


def _insert_new(connection: sa.Connection, rows: list[dict[str, object]]) -> set[str]:
    """Insert rows whose event_id is not there yet; returns the ids that went in."""
    insert = bulk.insert_ignoring_known(connection).returning(events.c.event_id)
    return set(connection.execute(insert, rows).scalars())


def _fingerprints(connection: sa.Connection, event_ids: list[str]) -> dict[str, bytes]:
    query = sa.select(events.c.event_id, events.c.fingerprint).where(events.c.event_id.in_(event_ids))
    return {row.event_id: bytes(row.fingerprint) for row in connection.execute(query)}
