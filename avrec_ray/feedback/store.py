"""The event store: durable before the answer, once per `event_id`, one user's history in one indexed read."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from avrec_ray.feedback import backup, bulk, impressions, upkeep
from avrec_ray.feedback.appending import Appended, Appender, Rejection
from avrec_ray.feedback.impressions import START, Impression, Watermark
from avrec_ray.feedback.schema import open_engine
from avrec_ray.feedback.tables import ACTED, events, store_info
from avrec_ray.feedback.upkeep import Removed
from avrec_ray.types import Event

__all__ = ["Appended", "EventStore", "Impression", "Rejection", "Removed", "Watermark"]

HISTORY_COLUMNS = (
    events.c.user_id, events.c.item_id, events.c.event, events.c.at_us, events.c.watch_seconds, events.c.value,
    events.c.event_id, events.c.request_id, events.c.position,
)  # fmt: skip
"""In the order of Event's fields."""
_USERS_PER_QUERY = 500
_HISTORY = (
    sa.select(*HISTORY_COLUMNS)
    .where(events.c.user_id == sa.bindparam("user_id"), ACTED)
    .order_by(events.c.at_us.desc(), events.c.seq.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
"""Built once: to build it takes as long as to run it."""


class EventStore:
    """Events of all users. Safe for threads; several processes may open one store."""

    def __init__(self, url: str, busy_timeout_seconds: float = 10.0) -> None:
        """Open or create the store at a SQLAlchemy URL, e.g. sqlite:////data/events.db; an older one is migrated.

        Raises:
            ConfigError: the URL is malformed, in memory, of an unsupported database, or its driver is not installed.
            StoreUnavailableError: the database cannot be reached.
            FeedbackError: a newer version of avrec_ray wrote the store.
        """
        self._engine = open_engine(url, busy_timeout_seconds)
        self._appender = Appender(self._engine)

    def append(self, new_events: Sequence[Event], received_at_seconds: float) -> Appended:
        """Keep events, in one transaction that is on disk when this returns. Threads that call at once share one.

        An event without `event_id` is rejected. One whose id is known is a duplicate if its body is the same, and
        rejected as a conflict if not. `at_seconds` NaN takes the server's `received_at_seconds`.

        Raises:
            StoreUnavailableError: a FeedbackError and an OSError; nothing is acknowledged, and sending the same events
                again is safe: those that were kept after all are duplicates then.
        """
        return self._appender.append(new_events, received_at_seconds)

    def record_impressions(self, shown: Sequence[Impression]) -> int:
        """Keep the impressions of a served list, in one transaction; returns how many were new.

        Once per request and item: the same list again adds nothing.

        Raises:
            StoreUnavailableError: nothing was kept.
            FeedbackError: the request is kept with another list, or an item comes twice; nothing was kept.
        """
        return impressions.record(self._engine, shown)

    def history(self, user_id: str, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events of a user, oldest first; impressions are no part of a history."""
        with self._engine.connect() as connection:
            rows = connection.execute(_HISTORY, {"user_id": user_id, "limit": limit}).all()
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
                    found[row.user_id].append(_event(row[: len(HISTORY_COLUMNS)]))
        return {user_id: tuple(history) for user_id, history in found.items()}

    def import_interactions(self, table: pa.Table) -> int:
        """Load an interactions table; returns how many events were new.

        A row without `event_id` gets one made from its content, so that importing the same table again adds nothing.
        Rows whose id is known are left as they are. Killed half-way, it may simply be run again.

        Raises:
            TableError: the table breaks its schema; nothing is loaded.
        """
        return bulk.import_interactions(self._engine, table, time.time())

    def export_interactions(self, after_watermark: int = 0, upto: int | None = None) -> tuple[pa.Table, int]:
        """Events kept after a watermark as an interactions table in server order, and the new watermark.

        Chained watermarks give every event exactly once. `upto`: an earlier `watermark().events` to stop at.
        """
        return bulk.export_interactions(self._engine, after_watermark, upto)

    def export_impressions(self, after_watermark: int = 0, upto: int | None = None) -> tuple[pa.Table, int]:
        """Impressions kept after a watermark, columns `impressions.IMPRESSIONS`, and the new watermark."""
        return impressions.export(self._engine, after_watermark, upto)

    def watermark(self) -> Watermark:
        """How far an export that begins now would read. What is kept later lies behind it."""
        return impressions.newest(self._engine)

    def export_joined(self, after: Watermark = START) -> tuple[pa.Table, Watermark]:
        """Events with the impression they answer, columns `impressions.JOINED`, and the new watermark.

        Chained watermarks give every pair exactly once, also where the impression was kept after its event.
        """
        return impressions.export_joined(self._engine, after)

    def retain(self, days: float, exported: Watermark) -> Removed:
        """Remove what the server took in more than `days` ago and an export has read; 0 days keeps all.

        A removed event is in no history any more, and its `event_id`, sent again, would count as new.
        """
        return upkeep.retain(self._engine, days, exported, time.time())

    def compact(self) -> None:
        """Give the room of removed rows back. SQLite: writers wait meanwhile; PostgreSQL: they do not."""
        upkeep.compact(self._engine)

    def copy(self, path: Path) -> None:
        """SQLite: a copy as one file, checked, while others write; it opens as a store.

        Raises:
            FeedbackError: the file exists, the copy is damaged, or the store is PostgreSQL (use `backup` or pg_dump).
        """
        upkeep.copy(self._engine, path)

    def backup(self, folder: Path) -> None:
        """Everything, as of one moment, as Parquet files with their digests; either database restores it.

        Raises:
            FeedbackError: the folder exists.
        """
        backup.backup(self._engine, folder)

    def restore(self, folder: Path) -> int:
        """Load a backup into this empty store, with order and watermarks as they were; returns the number of events.

        Raises:
            FeedbackError: the store is not empty, or the backup is incomplete, damaged, or of another version.
        """
        return backup.restore(self._engine, folder)

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


def _event(row: Sequence[Any]) -> Event:
    user_id, item_id, event, at_us, *rest = row
    return Event(user_id, item_id, event, at_us / 1e6, *rest)
