"""One user taken out of the store: at once for every reader, then row by row, then said in a signed receipt.

The first transaction leaves a tombstone with the server's time and the last `seq` of today. What lies below is gone for
readers from that commit on, whichever replica they ask. Killed anywhere after, the next `finish` goes on.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from avrec_ray.durable import crash_point
from avrec_ray.feedback.database import EVENTS_LOCK, IMPRESSIONS_LOCK, both_locks, write
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.receipts import Receipt, from_json, receipt_key, sign, subject_of, to_json
from avrec_ray.feedback.tables import ACTED, SHOWN, erased_events, erasures, events, impressions
from avrec_ray.feedback.user_keys import require_writable

ROWS_PER_TRANSACTION = 5_000
FILES_PENDING = "files under storage_path: python -m jobs.erase_user"
PENDING = (
    FILES_PENDING,
    "models: the next training leaves the user out",
    "backups and the database's own log: until they expire",
)


def erase(engine: sa.Engine, pseudonyms: Pseudonyms, name: str, now_seconds: float) -> Receipt:
    """See EventStore.erase."""
    name = pseudonyms.stored(name)
    tombstone = _bury(engine, pseudonyms, name, now_seconds)
    crash_point("erase.tombstone")
    return finish(engine, pseudonyms, name, tombstone)


def finish(engine: sa.Engine, pseudonyms: Pseudonyms, name: str, tombstone: str) -> Receipt:
    """Remove the rows below a user's tombstone, those that a killed erasure left too, and give the receipt."""
    with engine.connect() as connection:
        mark = connection.execute(sa.select(erasures).where(erasures.c.tombstone == tombstone)).one()
    if mark.receipt is not None:
        return from_json(mark.receipt)
    aliases = pseudonyms.aliases(name)
    _remove_events(engine, pseudonyms, aliases, mark.event_seq, mark.erased_us)
    crash_point("erase.events")
    _remove_impressions(engine, aliases, mark.impression_seq)
    crash_point("erase.impressions")
    with both_locks(engine) as connection:
        key = receipt_key(connection, pseudonyms)
        receipt = Receipt(
            subject=subject_of(pseudonyms.core(name), key),
            erased_at=_iso(mark.erased_us / 1e6),
            issued_at=_iso(time.time()),
            removed={"events": mark.num_events, "impressions": mark.num_impressions},
            pending=list(PENDING),
            key_id=key.key_id,
        )
        _keep(connection, tombstone, sign(receipt, key))
    crash_point("erase.receipt")
    return from_json(to_json(sign(receipt, key)))


def note_files(engine: sa.Engine, pseudonyms: Pseudonyms, name: str, removed: dict[str, int]) -> Receipt:
    """A new receipt, with what was removed from files, which are pending no more."""
    with both_locks(engine) as connection:
        query = sa.select(erasures.c.tombstone, erasures.c.receipt)
        row = connection.execute(query.where(erasures.c.tombstone.in_(pseudonyms.tombstones(name)))).one()
        before, key = from_json(row.receipt), receipt_key(connection, pseudonyms)
        if not removed and FILES_PENDING not in before.pending:
            return before
        counts = dict(before.removed)
        for place, count in removed.items():
            counts[place] = counts.get(place, 0) + count
        receipt = sign(
            dataclasses.replace(
                before,
                subject=subject_of(pseudonyms.core(name), key),
                issued_at=_iso(time.time()),
                removed=counts,
                pending=[what for what in before.pending if what != FILES_PENDING],
                key_id=key.key_id,
            ),
            key,
        )
        _keep(connection, row.tombstone, receipt)
    return receipt


def wipe(engine: sa.Engine) -> None:
    """SQLite: what was removed out of the log, too, if no reader is in it just now. What VACUUM does is `compact`'s."""
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            raw.close()


def resume(engine: sa.Engine, pseudonyms: Pseudonyms, others: Mapping[str, int]) -> int:
    """See EventStore.resume_erasures."""
    known = sa.select(erasures.c.tombstone)
    with both_locks(engine) as connection:
        have = set(connection.execute(known).scalars())
        renewed = {pseudonyms.renewed_digest(tombstone): erased_us for tombstone, erased_us in others.items()}
        upto = [connection.execute(sa.select(sa.func.max(t.c.seq))).scalar() or 0 for t in (events, impressions)]
        owner = _owners(connection, pseudonyms)
        for tombstone, erased_us in renewed.items():
            if tombstone not in have:
                aliases = pseudonyms.aliases(owner[tombstone]) if tombstone in owner else ()
                _insert(connection, tombstone, erased_us / 1e6, aliases, *upto)
        pending = connection.execute(known.where(erasures.c.purged_us.is_(None))).scalars().all()
    for tombstone in pending:
        if tombstone in owner:
            finish(engine, pseudonyms, owner[tombstone], tombstone)
        else:  # of the user no row is left, and nothing says who it was
            with write(engine) as connection:
                purged = sa.update(erasures).where(erasures.c.tombstone == tombstone)
                connection.execute(purged.values(purged_us=round(time.time() * 1e6)))
    return len(pending)


def tombstones(engine: sa.Engine) -> dict[str, int]:
    """See EventStore.tombstones."""
    with engine.connect() as connection:
        return {r.tombstone: r.erased_us for r in connection.execute(sa.select(erasures).order_by(erasures.c.seq))}


def _owners(connection: sa.Connection, pseudonyms: Pseudonyms) -> dict[str, str]:
    """Tombstone, under each key, to the name of everybody who has rows: a tombstone alone names nobody."""
    names = sorted(
        {n for t in (events, impressions) for n in connection.execute(sa.select(t.c.user_id).distinct()).scalars()}
    )
    return {t: n for parallel in pseudonyms.tombstones_many(names) for t, n in zip(parallel, names, strict=True)}


def _bury(engine: sa.Engine, pseudonyms: Pseudonyms, name: str, now_seconds: float) -> str:
    """Leave a tombstone; that of a user who did nothing since the last erasure stays as it is."""
    aliases, tombstones = pseudonyms.aliases(name), pseudonyms.tombstones(name)
    with both_locks(engine) as connection:
        require_writable(connection, pseudonyms)
        known = connection.execute(sa.select(erasures).where(erasures.c.tombstone.in_(tombstones))).all()
        last = max(known, key=lambda row: row.event_seq, default=None)
        if last is not None and not _has_newer(connection, aliases, last.event_seq, last.impression_seq):
            return str(last.tombstone)
        if known:
            connection.execute(sa.delete(erasures).where(erasures.c.tombstone.in_(tombstones)))
        upto = [connection.execute(sa.select(sa.func.max(t.c.seq))).scalar() or 0 for t in (events, impressions)]
        _insert(connection, tombstones[0], now_seconds, aliases, *upto)
    return tombstones[0]


def _insert(
    connection: sa.Connection,
    tombstone: str,
    now_seconds: float,
    aliases: tuple[str, ...],
    event_seq: int,
    impression_seq: int,
) -> None:
    """What there is to remove is counted now: a run that goes on after a kill finds only the rest."""
    queries = _rows_of(aliases, events.c.seq <= event_seq, impressions.c.seq <= impression_seq)
    *num_events, num_impressions = (
        connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one() for query in queries
    )
    connection.execute(
        sa.insert(erasures).values(
            tombstone=tombstone,
            erased_us=round(now_seconds * 1e6),
            event_seq=event_seq,
            impression_seq=impression_seq,
            num_events=sum(num_events),
            num_impressions=num_impressions,
        )
    )


def _rows_of(
    aliases: tuple[str, ...], of_events: sa.ColumnElement[bool], of_impressions: sa.ColumnElement[bool]
) -> list[sa.Select[Any]]:
    """A query for each index by user."""
    return [
        sa.select(events.c.seq).where(events.c.user_id.in_(aliases), ACTED, of_events),
        sa.select(events.c.seq).where(events.c.user_id.in_(aliases), SHOWN, of_events),
        sa.select(impressions.c.seq).where(impressions.c.user_id.in_(aliases), of_impressions),
    ]


def _has_newer(connection: sa.Connection, aliases: tuple[str, ...], event_seq: int, impression_seq: int) -> bool:
    newer = _rows_of(aliases, events.c.seq > event_seq, impressions.c.seq > impression_seq)
    return any(connection.execute(query.limit(1)).first() for query in newer)


def _remove_events(
    engine: sa.Engine, pseudonyms: Pseudonyms, aliases: tuple[str, ...], upto: int, erased_us: int
) -> None:
    for kind in (ACTED, SHOWN):  # each has an index by user
        mine = sa.select(events.c.seq, events.c.event_id).where(
            events.c.user_id.in_(aliases), kind, events.c.seq <= upto
        )
        while True:
            with write(engine, EVENTS_LOCK) as connection:
                rows = connection.execute(mine.limit(ROWS_PER_TRANSACTION)).all()
                if not rows:
                    break
                # In one transaction: an id is known as kept or as erased, in between it would count as new.
                digests = pseudonyms.event_digests([row.event_id for row in rows])[0]
                make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
                insert = make(erased_events).on_conflict_do_nothing(index_elements=["digest"])
                connection.execute(insert, [{"digest": digest, "erased_us": erased_us} for digest in digests])
                _delete(connection, events, [row.seq for row in rows])
            crash_point("erase.some_events")


def _remove_impressions(engine: sa.Engine, aliases: tuple[str, ...], upto: int) -> None:
    mine = sa.select(impressions.c.seq).where(impressions.c.user_id.in_(aliases), impressions.c.seq <= upto)
    while True:
        with write(engine, IMPRESSIONS_LOCK) as connection:
            seqs = connection.execute(mine.limit(ROWS_PER_TRANSACTION)).scalars().all()
            if not seqs:
                return
            _delete(connection, impressions, seqs)


def _delete(connection: sa.Connection, table: sa.Table, seqs: Sequence[int]) -> None:
    connection.execute(sa.delete(table).where(table.c.seq == sa.bindparam("row_seq")), [{"row_seq": s} for s in seqs])


def _keep(connection: sa.Connection, tombstone: str, receipt: Receipt) -> None:
    values = {"receipt": to_json(receipt), "purged_us": round(time.time() * 1e6)}
    connection.execute(sa.update(erasures).where(erasures.c.tombstone == tombstone).values(values))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
