"""The event store: durable before the answer, once per `event_id`, one user's history in one indexed read."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from avrec_ray.feedback import backup, bulk, claiming, erasure, impressions, upkeep
from avrec_ray.feedback.appending import Appended, Appender, Rejection
from avrec_ray.feedback.database import write
from avrec_ray.feedback.erased import ErasedUsers, erased_users, marks
from avrec_ray.feedback.erasure_scan import Scan, scan_database
from avrec_ray.feedback.histories import Histories
from avrec_ray.feedback.impressions import START, Impression, Watermark
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.receipts import Receipt, receipt_key, verify_receipt
from avrec_ray.feedback.rekey import Rekeyed, rekey
from avrec_ray.feedback.schema import open_engine
from avrec_ray.feedback.tables import events, store_info
from avrec_ray.feedback.upkeep import Removed
from avrec_ray.feedback.user_data import user_data
from avrec_ray.feedback.user_keys import claim
from avrec_ray.types import Event

__all__ = ["Appended", "EventStore", "Impression", "Receipt", "Rejection", "Rekeyed", "Removed", "Watermark"]


class EventStore:
    """Events of all users. Safe for threads; several processes may open one store."""

    def __init__(
        self, url: str, busy_timeout_seconds: float = 10.0, pseudonyms: Pseudonyms | None = None, rotating: bool = False
    ) -> None:
        """Open or create the store at a SQLAlchemy URL, e.g. sqlite:////data/events.db; an older one is migrated.

        Args:
            url: SQLAlchemy's.
            busy_timeout_seconds: how long a writer waits for others.
            pseudonyms: keys of the users' names; None: those of the environment. A store knows its keys.
            rotating: a store of users under their own ids may be opened with keys, to give it these.

        Raises:
            ConfigError: the URL is malformed, in memory, of an unsupported database, or its driver is not installed;
                or the store's users are under other keys, or under none.
            StoreUnavailableError: the database cannot be reached.
            FeedbackError: a newer version of avrec_ray wrote the store.
        """
        self.pseudonyms = Pseudonyms.from_environment() if pseudonyms is None else pseudonyms
        """Ids to the names under which this store keeps users. All methods take and give such names."""
        self._engine = open_engine(url, busy_timeout_seconds)
        try:
            claim(self._engine, self.pseudonyms, rotating)
        except BaseException:
            self._engine.dispose()
            raise
        self._appender = Appender(self._engine, self.pseudonyms)
        self._histories = Histories(self._engine, self.pseudonyms)

    def append(self, new_events: Sequence[Event], received_at_seconds: float) -> Appended:
        """Keep events, in one transaction that is on disk when this returns. Threads that call at once share one.

        An event without `event_id` is rejected. One whose id is known is a duplicate if its body is the same, and
        rejected as a conflict if not. `at_seconds` NaN takes the server's `received_at_seconds`. What an erased user
        did before the erasure is rejected, sent again or for the first time; what comes later begins a new history.

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
        return impressions.record(self._engine, self.pseudonyms, shown)

    def history(self, user_id: str, limit: int) -> tuple[Event, ...]:
        """The newest `limit` events of a user, oldest first; impressions are no part of a history."""
        return self._histories.read(user_id, limit)

    def histories(self, user_ids: Sequence[str], limit: int) -> dict[str, tuple[Event, ...]]:
        """`history` of many users; a user without events has an empty one."""
        return self._histories.read_many(user_ids, limit)

    def recent_users(self, limit: int) -> list[str]:
        """At most `limit` users of the newest events, newest first; fewer where few were busy of late."""
        return self._histories.recent_users(limit)

    def import_interactions(self, table: pa.Table) -> int:
        """Load an interactions table of ids or of stored names; returns how many events were new.

        A row without `event_id` gets one made from its content, so that importing the same table again adds nothing.
        Rows whose id is known are left as they are. Killed half-way, it may simply be run again.

        Raises:
            TableError: the table breaks its schema; nothing is loaded.
        """
        return bulk.import_interactions(self._engine, self.pseudonyms, table, time.time())

    def export_interactions(self, after_watermark: int = 0, upto: int | None = None) -> tuple[pa.Table, int]:
        """Events kept after a watermark as an interactions table in server order, and the new watermark.

        Chained watermarks give every event exactly once. `upto`: an earlier `watermark().events` to stop at.
        """
        return bulk.export_interactions(self._engine, self.pseudonyms, after_watermark, upto)

    def export_impressions(self, after_watermark: int = 0, upto: int | None = None) -> tuple[pa.Table, int]:
        """Impressions kept after a watermark, columns `impressions.IMPRESSIONS`, and the new watermark."""
        return impressions.export(self._engine, self.pseudonyms, after_watermark, upto)

    def watermark(self) -> Watermark:
        """How far an export that begins now would read. What is kept later lies behind it."""
        return impressions.newest(self._engine)

    def export_joined(self, after: Watermark = START) -> tuple[pa.Table, Watermark]:
        """Events with the impression they answer, columns `impressions.JOINED`, and the new watermark.

        Chained watermarks give every pair exactly once, also where the impression was kept after its event.
        """
        return impressions.export_joined(self._engine, self.pseudonyms, after)

    def claim(self, anonymous: str, user: str) -> int:
        """Make events and impressions of an anonymous visitor a user's; returns how many events that were.

        Both are names as stored; see `claiming.check_anonymous` for ids. Claiming again moves what came since, and
        nothing else. What was exported before stays under the visitor's name there.

        Raises:
            StoreUnavailableError: nothing was moved.
        """
        return claiming.claim(self._engine, self.pseudonyms, anonymous, user)

    def erased_users(self) -> ErasedUsers:
        """Everybody who was erased, to keep them out of what is read from elsewhere."""
        with self._engine.connect() as connection:
            return erased_users(connection, self.pseudonyms)

    def erase(self, user_id: str) -> Receipt:
        """Forget a user: no reader sees a row of theirs when this begins to remove them; gives a signed receipt.

        Again, with nothing new of the user since, it gives the same receipt. One that was killed is completed.

        Raises:
            StoreUnavailableError: the database failed; what of it is done stays done, ask again.
        """
        receipt = erasure.erase(self._engine, self.pseudonyms, user_id, time.time())
        erasure.wipe(self._engine)
        return receipt

    def is_erased(self, user_id: str) -> bool:
        """Whether a user was erased, whatever they did since: models may know them still, and must not use it."""
        with self._engine.connect() as connection:
            return bool(marks(connection, self.pseudonyms, [user_id]))

    def tombstones(self) -> dict[str, int]:
        """What erased users are remembered by, to POSIX microseconds: kept beside, they outlive a restored backup."""
        return erasure.tombstones(self._engine)

    def resume_erasures(self, others: Mapping[str, int] = MappingProxyType({})) -> int:
        """Complete erasures that were killed, after taking over `others`, those that a restored backup does not know.

        Looks through the names of all users; returns how many erasures were completed.
        """
        num_resumed = erasure.resume(self._engine, self.pseudonyms, others)
        erasure.wipe(self._engine)
        return num_resumed

    def note_erased_files(self, user_id: str, removed: dict[str, int]) -> Receipt:
        """After `erase` and after files were looked through: the receipt with what was removed from each."""
        return erasure.note_files(self._engine, self.pseudonyms, user_id, removed)

    def verify_receipt(self, receipt: Receipt, user_id: str | None = None) -> None:
        """Check that this service signed a receipt and, where a user is given, that it is of this user.

        Raises:
            FeedbackError: it did not, it was changed, the key is another one now, or it is of somebody else.
        """
        with write(self._engine) as connection:
            key = receipt_key(connection, self.pseudonyms)
        verify_receipt(receipt, key, None if user_id is None else self.pseudonyms.core(user_id))

    def scan(self, names: Iterable[str], scan: Scan) -> None:
        """Look through every row of every table of the database for users' names; what is found is added to `scan`."""
        scan_database(self._engine, names, scan)

    def user_data(self, user_id: str) -> dict[str, Any]:
        """All that is kept of a user, as JSON values: events and impressions in server order, times as ISO 8601."""
        return user_data(self._engine, self.pseudonyms, user_id)

    def rekey(self) -> Rekeyed:
        """Give all users names under the key that comes first, also those that are under their own ids so far.

        Others may read and write meanwhile, if they have both keys. Killed, the next call goes on. When it returns,
        nothing in the store is under another key, and the older ones may be destroyed.
        """
        rekeyed = rekey(self._engine, self.pseudonyms)
        erasure.wipe(self._engine)
        return rekeyed

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
        return backup.restore(self._engine, self.pseudonyms, folder)

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
