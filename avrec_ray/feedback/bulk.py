"""Whole tables in and out of the event store."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from avrec_ray.feedback.database import write
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.tables import events
from avrec_ray.types import INTERACTIONS, Event, check_interactions

ROWS_PER_TRANSACTION = 50_000
"""Bounds memory, and how long an import keeps other writers waiting (about a second)."""


def insert_ignoring_known(connection: sa.Connection) -> Any:
    """An INSERT that leaves rows with a known event_id as they are."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(events).on_conflict_do_nothing(index_elements=["event_id"])


def import_interactions(engine: sa.Engine, table: pa.Table, received_at_seconds: float) -> int:
    """See EventStore.import_interactions."""
    checked = check_interactions(table).select(INTERACTIONS.names)
    occurrences: dict[bytes, int] = {}
    added = 0
    for start in range(0, checked.num_rows, ROWS_PER_TRANSACTION):
        part = checked.slice(start, ROWS_PER_TRANSACTION)
        rows = list(_rows(part, occurrences, round(received_at_seconds * 1e6)))
        with write(engine) as connection:
            before = _count(connection)
            connection.execute(insert_ignoring_known(connection), rows)
            added += _count(connection) - before
    return added


def _rows(table: pa.Table, occurrences: dict[bytes, int], received_us: int) -> Iterator[dict[str, Any]]:
    columns = [table[name].to_pylist() for name in INTERACTIONS.names if name != "at"]
    at_us = table["at"].cast(pa.int64()).to_pylist()
    for at, user_id, item_id, name, watch_seconds, value, event_id, request_id, position in zip(
        at_us, *columns, strict=True
    ):
        event = Event(user_id, item_id, name, at / 1e6, watch_seconds, value, event_id, request_id, position)
        fingerprint = fingerprint_of(event)
        yield {
            "event_id": event_id or _content_id(fingerprint, occurrences),
            "user_id": user_id,
            "item_id": item_id,
            "event": name,
            "at_us": at,
            "received_us": received_us,
            "watch_seconds": watch_seconds,
            "value": value,
            "request_id": request_id,
            "position": position,
            "fingerprint": fingerprint,
        }


def _content_id(fingerprint: bytes, occurrences: dict[bytes, int]) -> str:
    """An id from a row's content; the n-th of several equal rows differs from the others, in every import alike."""
    nth = occurrences.get(fingerprint, 0)
    occurrences[fingerprint] = nth + 1
    return "row-" + hashlib.sha256(fingerprint + nth.to_bytes(4, "big")).hexdigest()[:32]


def export_interactions(engine: sa.Engine, after_watermark: int, upto: int | None = None) -> tuple[pa.Table, int]:
    """See EventStore.export_interactions."""
    wanted = [events.c.seq > after_watermark] + ([] if upto is None else [events.c.seq <= upto])
    query = sa.select(events).where(*wanted).order_by(events.c.seq)
    tables, watermark = [], after_watermark
    with engine.connect() as connection:
        found = connection.execution_options(stream_results=True).execute(query)
        for rows in found.partitions(ROWS_PER_TRANSACTION):
            tables.append(_table(rows))
            watermark = rows[-1].seq
    return pa.concat_tables(tables) if tables else INTERACTIONS.empty_table(), watermark


def _table(rows: Any) -> pa.Table:
    columns = dict(zip(events.c.keys(), zip(*rows, strict=True), strict=True))
    at = pa.array(np.array(columns["at_us"], np.int64)).cast(pa.timestamp("us", tz="UTC"))
    arrays = [at if f.name == "at" else pa.array(columns[f.name], f.type) for f in INTERACTIONS]
    return pa.table(arrays, schema=INTERACTIONS)


def _count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()
