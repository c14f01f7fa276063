"""What keeps an event store small and safe: removing what is old, giving room back, copying the file."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from avrec_ray.durable import sync
from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import EVENTS_LOCK, IMPRESSIONS_LOCK, write
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.feedback.tables import erased_events, erasures, events, impressions

ROWS_PER_TRANSACTION = 20_000
"""Rows looked at while writers wait."""
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Removed:
    """How many rows `retain` removed."""

    events: int
    impressions: int


def retain(engine: sa.Engine, days: float, exported: Watermark, now_seconds: float) -> Removed:
    """See EventStore.retain."""
    if days < 0:
        raise FeedbackError(f"feedback.retention_days: got {days}, expected 0 to keep all, or a number of days")
    if days == 0:
        return Removed(0, 0)
    before_us = round((now_seconds - days * _SECONDS_PER_DAY) * 1e6)
    with write(engine) as connection:  # as with every id: a client that sends again so late would be taken as new
        connection.execute(sa.delete(erased_events).where(erased_events.c.erased_us < before_us))
    return Removed(
        _remove(engine, events, events.c.received_us < before_us, exported.events, EVENTS_LOCK),
        _remove(engine, impressions, impressions.c.at_us < before_us, exported.impressions, IMPRESSIONS_LOCK),
    )


def _remove(engine: sa.Engine, table: sa.Table, is_old: sa.ColumnElement[bool], upto: int, lock: int) -> int:
    seq, removed, start = table.c.seq, 0, 0
    while start < upto:
        with write(engine, lock) as connection:
            part = sa.select(seq).where(seq > start, seq <= upto).order_by(seq).limit(ROWS_PER_TRANSACTION).subquery()
            end = connection.execute(sa.select(sa.func.max(part.c.seq))).scalar()
            if end is None:
                return removed
            removed += connection.execute(sa.delete(table).where(seq > start, seq <= end, is_old)).rowcount
        start = end
    return removed


def compact(engine: sa.Engine) -> None:
    """See EventStore.compact."""
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()  # VACUUM runs in no transaction, and the engine would begin one
        try:
            raw.cursor().execute("VACUUM")
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            raw.close()
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in (events, impressions, erasures, erased_events):
            connection.execute(sa.text(f"VACUUM (ANALYZE) {table.name}"))


def copy(engine: sa.Engine, path: Path) -> None:
    """See EventStore.copy."""
    if engine.dialect.name != "sqlite":
        raise FeedbackError("copy makes a file of a SQLite store; back PostgreSQL up with `backup`, or with pg_dump")
    if path.exists():
        raise FeedbackError(f"{path} exists; a copy of the event store overwrites nothing: give a new name")
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a copy that was interrupted
    try:
        with closing(sqlite3.connect(str(engine.url.database))) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)  # in one step: between steps a write would begin it anew
            # The copy lies alone, without a log beside it; a store that opens it turns the log on again.
            target.execute("PRAGMA journal_mode = DELETE")
            problems = _problems(target)
        if problems != ["ok"]:
            raise FeedbackError(f"the copy of the event store is damaged ({problems[0]}); check the store itself")
        sync(part)
        os.rename(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _problems(copied: sqlite3.Connection) -> list[str]:
    try:
        return [row[0] for row in copied.execute("PRAGMA integrity_check")]
    except sqlite3.DatabaseError as error:  # too damaged to be checked
        return [str(error)]
