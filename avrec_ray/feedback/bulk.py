"""Whole tables in and out of the event store."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from avrec_ray.feedback.database import snapshot, write
from avrec_ray.feedback.erased import not_erased, refused_events
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import events
from avrec_ray.feedback.user_keys import require_writable
from avrec_ray.types import INTERACTIONS, Event, check_interactions

CONTENT_ID_PREFIX = "row-"
_IDS_PER_QUERY = 500
ROWS_PER_TRANSACTION = 50_000
"""Bounds memory, and how long an import keeps other writers waiting (about a second)."""


def insert_ignoring_known(connection: sa.Connection) -> Any:
    """An INSERT that leaves rows with a known event_id as they are."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(events).on_conflict_do_nothing(index_elements=["event_id"])


def import_interactions(engine: sa.Engine, pseudonyms: Pseudonyms, table: pa.Table, received_at_seconds: float) -> int:
    """See EventStore.import_interactions."""
    checked = pseudonyms.table(check_interactions(table).select(INTERACTIONS.names))
    counted: list[dict[bytes, int]] = [{} for _ in range(max(1, len(pseudonyms.versions)))]
    added = 0
    for start in range(0, checked.num_rows, ROWS_PER_TRANSACTION):
        part = checked.slice(start, ROWS_PER_TRANSACTION)
        rows = list(_rows(part, pseudonyms, counted, round(received_at_seconds * 1e6)))
        with write(engine) as connection:
            require_writable(connection, pseudonyms)
            left_out = refused_events(connection, pseudonyms, rows).keys() | _known_by_older_ids(connection, rows)
            wanted = [{k: row[k] for k in row if k != _OLDER_IDS} for row in rows if row["event_id"] not in left_out]
            before = _count(connection)
            if wanted:
                connection.execute(insert_ignoring_known(connection), wanted)
            added += _count(connection) - before
    return added


_OLDER_IDS = "older_ids"
"""Beside a row whose id was made from its content: what that id is under older keys."""


def _rows(
    table: pa.Table, pseudonyms: Pseudonyms, counted: list[dict[bytes, int]], received_us: int
) -> Iterator[dict[str, Any]]:
    columns = [table[name].to_pylist() for name in INTERACTIONS.names if name != "at"]
    at_us = table["at"].cast(pa.int64()).to_pylist()
    for at, user_id, item_id, name, watch_seconds, value, event_id, request_id, position in zip(
        at_us, *columns, strict=True
    ):
        event = Event(user_id, item_id, name, at / 1e6, watch_seconds, value, event_id, request_id, position)
        fingerprint = fingerprint_of(event)
        made_id, *older_ids = (event_id,) if event_id else _content_ids(event, fingerprint, pseudonyms, counted)
        yield {
            "event_id": made_id,
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
            _OLDER_IDS: older_ids,
        }


def _content_ids(
    event: Event, fingerprint: bytes, pseudonyms: Pseudonyms, counted: list[dict[bytes, int]]
) -> tuple[str, ...]:
    """Ids from a row's content under each key; the n-th of several equal rows differs, in every import alike."""
    older = [dataclasses.replace(event, user_id=alias) for alias in pseudonyms.aliases(event.user_id)[1:]]
    prints = [fingerprint, *map(fingerprint_of, older)]
    return tuple(content_id(print_, _next(counts, print_)) for print_, counts in zip(prints, counted, strict=True))


def _next(counts: dict[bytes, int], fingerprint: bytes) -> int:
    nth = counts.get(fingerprint, 0)
    counts[fingerprint] = nth + 1
    return nth


def _known_by_older_ids(connection: sa.Connection, rows: list[dict[str, Any]]) -> set[str]:
    """Rows that an import under an older key left in the store, and whose key was not changed yet."""
    owner = {older: row["event_id"] for row in rows for older in row[_OLDER_IDS]}
    known: set[str] = set()
    ids = list(owner)
    for start in range(0, len(ids), _IDS_PER_QUERY):
        query = sa.select(events.c.event_id).where(events.c.event_id.in_(ids[start : start + _IDS_PER_QUERY]))
        known |= {owner[older] for older in connection.execute(query).scalars()}
    return known


def content_id(fingerprint: bytes, nth: int) -> str:
    """`event_id` of an imported row that had none: from its content, and which of several equal rows it is."""
    return CONTENT_ID_PREFIX + hashlib.sha256(fingerprint + nth.to_bytes(4, "big")).hexdigest()[:32]


def export_interactions(
    engine: sa.Engine, pseudonyms: Pseudonyms, after_watermark: int, upto: int | None = None
) -> tuple[pa.Table, int]:
    """See EventStore.export_interactions."""
    wanted = [events.c.seq > after_watermark] + ([] if upto is None else [events.c.seq <= upto])
    query = sa.select(events).where(*wanted).order_by(events.c.seq)
    tables, watermark = [], after_watermark
    with snapshot(engine) as connection:
        found = connection.execution_options(stream_results=True).execute(query)
        for rows in found.partitions(ROWS_PER_TRANSACTION):
            watermark = rows[-1].seq
            if kept := not_erased(connection, pseudonyms, rows):
                tables.append(pseudonyms.table(_table(kept)))
    return pa.concat_tables(tables) if tables else INTERACTIONS.empty_table(), watermark


def _table(rows: Any) -> pa.Table:
    columns = dict(zip(events.c.keys(), zip(*rows, strict=True), strict=True))
    at = pa.array(np.array(columns["at_us"], np.int64)).cast(pa.timestamp("us", tz="UTC"))
    arrays = [at if f.name == "at" else pa.array(columns[f.name], f.type) for f in INTERACTIONS]
    return pa.table(arrays, schema=INTERACTIONS)


def _count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()
